//! YAML text into a [`Node`] tree.
//!
//! The tree is built from parser events without recursion, and everything that could grow has a bound:
//! nesting, the number of values, and with it what aliases may multiply.

use std::collections::{HashMap, HashSet};

use serde_saphyr::granit_parser::{ErrorKind, Event, Parser, ScalarStyle, ScanError, Span as Range};

use crate::diagnostics::Span;
use crate::interpolate::interpolate;
use crate::node::{Key, Node, Scalar, Value};

/// Deeper nesting is a mistake or an attack; real files need about ten levels.
const MAX_DEPTH: usize = 64;

/// Values in one file, those that aliases repeat included. A route needs about thirty.
const MAX_NODES: usize = 500_000;

/// Something wrong in the text, before any meaning is given to it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct YamlError {
    pub(crate) span: Span,
    pub(crate) message: String,
    pub(crate) help: Option<String>,
}

/// Looks up an environment variable.
pub(crate) type Env<'e> = dyn Fn(&str) -> Option<String> + 'e;

/// Parses one document without errors.
pub(crate) fn parse(text: &str, env: &Env<'_>) -> Result<Node, Vec<YamlError>> {
    let (root, errors) = parse_partly(text, env)?;
    if errors.is_empty() { Ok(root) } else { Err(errors) }
}

/// Parses one document; an empty one is null. Beside it stand the errors that leave the rest readable: all unset
/// variables, whose values stay unset, and repeated keys, which are left out. After an error of syntax the parser
/// cannot go on.
pub(crate) fn parse_partly(text: &str, env: &Env<'_>) -> Result<(Node, Vec<YamlError>), Vec<YamlError>> {
    let mut builder = Builder::new(env);
    for event in Parser::new_from_str(text) {
        let step = event.map_err(syntax_error).and_then(|(event, range)| builder.event(event, span(&range)));
        if let Err(error) = step {
            builder.errors.push(error);
            return Err(builder.errors);
        }
    }
    let empty = || null(Span { line: 1, column: 1, ..Span::default() });
    Ok((builder.root.unwrap_or_else(empty), builder.errors))
}

struct Builder<'e> {
    env: &'e Env<'e>,
    root: Option<Node>,
    open: Vec<Open>,
    anchors: HashMap<usize, Anchored>,
    nodes: usize,
    documents: usize,
    errors: Vec<YamlError>,
}

/// A list or table whose end has not been read yet.
struct Open {
    node: Node,
    anchor: usize,
    key: Option<Key>,
    /// Whether that key stood here before.
    repeats: bool,
    keys: HashSet<String>,
}

struct Anchored {
    node: Node,
    nodes: usize,
    depth: usize,
}

impl<'e> Builder<'e> {
    fn new(env: &'e Env<'e>) -> Self {
        Self {
            env,
            root: None,
            open: Vec::new(),
            anchors: HashMap::new(),
            nodes: 0,
            documents: 0,
            errors: Vec::new(),
        }
    }

    fn event(&mut self, event: Event<'_>, span: Span) -> Result<(), YamlError> {
        match event {
            Event::DocumentStart(..) => {
                self.documents += 1;
                if self.documents > 1 {
                    return Err(error(span, "a second YAML document").help("one file holds one document"));
                }
            }
            Event::Scalar(text, style, anchor, tag) => {
                let text_tag = check_tag(tag.as_deref().map(|tag| tag.original()), span)?;
                let plain = style == ScalarStyle::Plain && !text_tag;
                // The parser shows a value that is not there as `~`; here that makes a difference.
                let text = if plain && span.len == 0 { String::new() } else { text.into_owned() };
                return self.scalar(text, plain, anchor, span);
            }
            Event::SequenceStart(_, anchor, tag) => {
                check_tag(tag.as_deref().map(|tag| tag.original()), span)?;
                return self.open(Value::List(Vec::new()), anchor, span);
            }
            Event::MappingStart(_, anchor, tag) => {
                check_tag(tag.as_deref().map(|tag| tag.original()), span)?;
                return self.open(Value::Table(Vec::new()), anchor, span);
            }
            Event::SequenceEnd | Event::MappingEnd => {
                if let Some(open) = self.open.pop() {
                    self.remember(open.anchor, &open.node);
                    self.place(open.node)?;
                }
            }
            Event::Alias(anchor) => return self.alias(anchor, span),
            _ => {}
        }
        Ok(())
    }

    fn scalar(&mut self, text: String, plain: bool, anchor: usize, span: Span) -> Result<(), YamlError> {
        self.count(1, span)?;
        if self.awaiting_key().is_some() {
            return self.key(Key { text, span });
        }
        let value = match interpolate(&text, self.env) {
            Ok((text, env)) => Value::Scalar(Scalar { text, plain, env }),
            Err(problem) => {
                self.errors.push(YamlError { span, message: problem.message, help: Some(problem.help) });
                Value::Unset
            }
        };
        let node = Node { span, value };
        self.remember(anchor, &node);
        self.place(node)
    }

    fn awaiting_key(&mut self) -> Option<&mut Open> {
        let open = self.open.last_mut()?;
        (matches!(open.node.value, Value::Table(_)) && open.key.is_none()).then_some(open)
    }

    fn key(&mut self, key: Key) -> Result<(), YamlError> {
        if key.text == "<<" {
            return Err(error(key.span, "merge keys (`<<`) are not supported")
                .help("repeat the values, or alias a whole value with `key: *name`"));
        }
        let Some(open) = self.awaiting_key() else { return Ok(()) };
        let repeated = !open.keys.insert(key.text.clone());
        open.repeats = repeated;
        open.key = Some(key.clone());
        if repeated {
            self.errors.push(error(key.span, format!("key `{}` stands here twice", key.text)));
        }
        Ok(())
    }

    fn open(&mut self, value: Value, anchor: usize, span: Span) -> Result<(), YamlError> {
        if self.awaiting_key().is_some() {
            return Err(error(span, "a key must be a word or a text, not a list or a table")
                .help("quote a value that begins with `{` or `[`"));
        }
        self.count(1, span)?;
        self.check_depth(1, span)?;
        self.open.push(Open {
            node: Node { span, value },
            anchor,
            key: None,
            repeats: false,
            keys: HashSet::new(),
        });
        Ok(())
    }

    fn alias(&mut self, anchor: usize, span: Span) -> Result<(), YamlError> {
        if self.awaiting_key().is_some() {
            return Err(error(span, "an alias cannot be a key"));
        }
        let Some(anchored) = self.anchors.get(&anchor) else {
            return Err(error(span, "this alias stands inside the value that it names"));
        };
        let (nodes, depth, node) = (anchored.nodes, anchored.depth, anchored.node.clone());
        self.count(nodes, span)?;
        self.check_depth(depth, span)?;
        self.place(node)
    }

    /// Puts a finished value where it belongs.
    fn place(&mut self, node: Node) -> Result<(), YamlError> {
        match self.open.last_mut() {
            None => self.root = Some(node),
            Some(open) => match (&mut open.node.value, open.key.take()) {
                (Value::Table(_), Some(_)) if open.repeats => {}
                (Value::Table(entries), Some(key)) => entries.push((key, node)),
                (Value::List(items), _) => items.push(node),
                _ => return Err(error(node.span, "a value without a key")),
            },
        }
        Ok(())
    }

    fn remember(&mut self, anchor: usize, node: &Node) {
        if anchor != 0 {
            let (nodes, depth) = measure(node);
            self.anchors.insert(anchor, Anchored { node: node.clone(), nodes, depth });
        }
    }

    fn count(&mut self, nodes: usize, span: Span) -> Result<(), YamlError> {
        self.nodes = self.nodes.saturating_add(nodes);
        if self.nodes > MAX_NODES {
            return Err(error(span, format!("more than {MAX_NODES} values, counting what aliases repeat")));
        }
        Ok(())
    }

    fn check_depth(&self, depth: usize, span: Span) -> Result<(), YamlError> {
        if self.open.len() + depth > MAX_DEPTH {
            return Err(too_deep(span));
        }
        Ok(())
    }
}

/// Values and levels of a subtree; the recursion is as deep as the tree, which is bounded.
fn measure(node: &Node) -> (usize, usize) {
    let (mut nodes, mut depth) = (1, 0);
    let mut add = |child: &Node| {
        let (below, levels) = measure(child);
        nodes += below;
        depth = depth.max(levels);
    };
    if matches!(node.value, Value::Scalar(_) | Value::Unset) {
        return (1, 0);
    }
    node.children().for_each(&mut add);
    (nodes, depth + 1)
}

/// Whether the tag says "this is a text"; other tags have no meaning here.
fn check_tag(tag: Option<String>, span: Span) -> Result<bool, YamlError> {
    match tag.as_deref() {
        None => Ok(false),
        Some("!" | "!!str") => Ok(true),
        Some(tag) => Err(error(span, format!("the tag `{tag}` has no meaning here"))
            .help("a value that begins with `!` must be quoted")),
    }
}

fn syntax_error(scan: ScanError) -> YamlError {
    let marker = scan.marker();
    let span = Span {
        line: to_u32(marker.line()).max(1),
        column: to_u32(marker.col()).saturating_add(1),
        offset: marker.byte_offset().unwrap_or_default(),
        len: 0,
    };
    match scan.kind() {
        ErrorKind::RecursionLimitExceeded => too_deep(span),
        kind => {
            let error = error(span, format!("not valid YAML: {}", lowercase_first(&scan.info())));
            YamlError { help: syntax_help(kind).map(str::to_owned), ..error }
        }
    }
}

/// Advice for the errors that people make, in words that need no knowledge of YAML's grammar.
fn syntax_help(kind: &ErrorKind) -> Option<&'static str> {
    use ErrorKind as Kind;
    match kind {
        Kind::TabNotAllowed | Kind::TabInBlockIndentation | Kind::TabInIndentation => {
            Some("indent with spaces instead of tabs")
        }
        Kind::InvalidColonPlacement | Kind::MappingValueNotAllowed => {
            Some("is a `]`, `}` or quote missing above? a text that holds `: ` must be quoted")
        }
        Kind::InvalidIndentation | Kind::ExpectedBlockMappingKey | Kind::ExpectedBlockSequenceEntry => {
            Some("is this indented like its neighbours?")
        }
        Kind::UnexpectedCharacter { .. } => Some("quote a text that begins with this character"),
        _ => None,
    }
}

fn too_deep(span: Span) -> YamlError {
    error(span, format!("nested deeper than {MAX_DEPTH} levels"))
}

fn lowercase_first(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_lowercase().chain(chars).collect())
}

fn null(span: Span) -> Node {
    Node { span, value: Value::Scalar(Scalar { text: String::new(), plain: true, env: None }) }
}

fn span(range: &Range) -> Span {
    let bytes = range.byte_range().unwrap_or_default();
    Span {
        line: to_u32(range.start.line()),
        column: to_u32(range.start.col()).saturating_add(1),
        offset: bytes.start,
        len: bytes.len(),
    }
}

fn to_u32(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

fn error(span: Span, message: impl Into<String>) -> YamlError {
    YamlError { span, message: message.into(), help: None }
}

impl YamlError {
    fn help(self, help: &str) -> Self {
        Self { help: Some(help.to_owned()), ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Node {
        parse(text, &|_| None).unwrap()
    }

    fn failure(text: &str) -> (u32, u32, String) {
        let error = parse(text, &|_| None).unwrap_err().remove(0);
        (error.span.line, error.span.column, error.message)
    }

    fn place(text: &str, node: &Node) -> (u32, u32, String) {
        let Span { line, column, offset, len } = node.span;
        (line, column, text[offset..offset + len].to_owned())
    }

    #[test]
    fn every_value_and_key_knows_its_place() {
        let text = "# comment\nä: \"ü\" # more\nlist:\n  - one\n  - { k: v }\nblock: |\n  text\n";
        let node = parsed(text);
        assert_eq!(place(text, node.child("ä").unwrap()), (2, 4, "\"ü\"".to_owned()));
        let items = node.child("list").unwrap().items().unwrap();
        assert_eq!(place(text, &items[0]), (4, 5, "one".to_owned()));
        let (key, value) = &items[1].entries().unwrap()[0];
        assert_eq!((key.span.line, key.span.column, key.span.len), (5, 7, 1));
        assert_eq!(place(text, value), (5, 10, "v".to_owned()));
        assert_eq!(node.child("block").unwrap().text(), Some("text\n"));
    }

    #[test]
    fn places_survive_crlf() {
        let text = "a: 1\r\nb:\r\n  - x\r\n";
        let node = parsed(text);
        assert_eq!(place(text, &node.child("b").unwrap().items().unwrap()[0]), (3, 5, "x".to_owned()));
    }

    #[test]
    fn nothing_is_null() {
        for text in ["", "\n\n", "# only a comment\n", "---\n", "~"] {
            assert!(parsed(text).is_null(), "{text:?}");
        }
        let node = parsed("a:\nb: ~\nc: null\nd: \"\"\n");
        let absent = |key| node.child(key).unwrap().is_absent();
        assert_eq!(["a", "b", "c", "d"].map(absent), [false, true, true, false]);
    }

    #[test]
    fn repeated_keys_are_all_reported_at_the_repetition() {
        let errors = parse("a: 1\nb: 2\na: 3\nb: 4\n", &|_| None).unwrap_err();
        let found: Vec<_> = errors.iter().map(|e| (e.span.line, e.message.as_str())).collect();
        assert_eq!(found, [(3, "key `a` stands here twice"), (4, "key `b` stands here twice")]);
    }

    #[test]
    fn aliases_repeat_values() {
        let node = parsed("a: &x { k: 1 }\nb: *x\nc: &y word\nd: *y\n");
        assert_eq!(node.child("a"), node.child("b"));
        assert_eq!(node.child("d").unwrap().text(), Some("word"));
    }

    #[test]
    fn an_alias_cannot_name_what_it_stands_in() {
        assert_eq!(failure("a: &x [*x]\n").2, "this alias stands inside the value that it names");
    }

    #[test]
    fn alias_bombs_are_bounded() {
        let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..20 {
            let below = format!("*a{}, ", level - 1).repeat(10);
            bomb.push_str(&format!("a{level}: &a{level} [{below}]\n"));
        }
        assert_eq!(failure(&bomb).2, "more than 500000 values, counting what aliases repeat");
        let mut deep = "a0: &a0 [x]\n".to_owned();
        for level in 1..200 {
            deep.push_str(&format!("a{level}: &a{level} [*a{}]\n", level - 1));
        }
        assert_eq!(failure(&deep).2, "nested deeper than 64 levels");
    }

    #[test]
    fn nesting_is_bounded() {
        let flow = format!("a: {}{}", "[".repeat(5000), "]".repeat(5000));
        assert_eq!(failure(&flow).2, "nested deeper than 64 levels");
        let block: String = (0..5000).map(|level| format!("{}a:\n", " ".repeat(level))).collect();
        assert_eq!(failure(&block).2, "nested deeper than 64 levels");
    }

    #[test]
    fn what_has_no_meaning_is_refused() {
        assert_eq!(failure("a: !secret x\n").2, "the tag `!secret` has no meaning here");
        assert_eq!(failure("<<: { a: 1 }\n").2, "merge keys (`<<`) are not supported");
        assert_eq!(failure("a: 1\n---\nb: 2\n").2, "a second YAML document");
        assert_eq!(failure("{ a: 1 }: x\n").2, "a key must be a word or a text, not a list or a table");
        assert!(failure("a: [1, 2\n").2.starts_with("not valid YAML: "));
        assert!(failure("a: *nobody\n").2.starts_with("not valid YAML: "));
    }

    #[test]
    fn the_str_tag_makes_a_text() {
        assert_eq!(parsed("a: !!str 5\n").to_json(), serde_json::json!({ "a": "5" }));
    }
}
