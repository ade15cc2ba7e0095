//! Masks JSON in its own text: what is not masked stays byte for byte, numbers with all their digits.

use std::borrow::Cow;

use portcullis_plugin::BuildError;
use serde::de::IgnoredAny;

use super::Rules;

/// The deepest nesting that is followed, since following recurses.
const MAX_DEPTH: usize = 128;

/// The body is not JSON, or nested too deep to tell.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Broken;

/// A field to mask.
#[derive(Debug, PartialEq)]
pub(super) enum FieldRule {
    /// A name at any depth.
    Anywhere(String),
    /// A path from the top.
    Path(Vec<Step>),
}

#[derive(Debug, PartialEq)]
pub(super) enum Step {
    Field(String),
    AnyField,
    Elements,
}

impl FieldRule {
    /// Parses `name`, `a.b`, `a[].b`, `a.*.b`; `at` is the path of the setting.
    pub(super) fn parse(at: &str, text: &str) -> Result<Self, BuildError> {
        let wrong = || {
            BuildError::at(at, format!("`{text}` is not a field"))
                .help("write e.g. `password`, `user.ssn`, `items[].token` or `accounts.*.iban`")
        };
        if !text.is_empty() && !text.contains(['.', '[', ']', '*']) {
            return Ok(FieldRule::Anywhere(text.to_owned()));
        }
        let mut steps = Vec::new();
        for (index, segment) in text.split('.').enumerate() {
            let name = segment.trim_end_matches("[]");
            match name {
                // `[].a`: the document is an array.
                "" if index == 0 && !segment.is_empty() => {}
                "*" => steps.push(Step::AnyField),
                name if name.is_empty() || name.contains(['[', ']', '*']) => return Err(wrong()),
                name => steps.push(Step::Field(name.to_owned())),
            }
            steps.extend((name.len()..segment.len()).step_by(2).map(|_| Step::Elements));
        }
        Ok(FieldRule::Path(steps))
    }
}

/// A key or an index on the way to a value.
enum Way<'a> {
    Field(Cow<'a, str>),
    Element,
}

/// The masked document; none if nothing is to be masked.
pub(super) fn mask(rules: &Rules, text: &[u8]) -> Result<Option<Vec<u8>>, Broken> {
    // From here on the text is known to be JSON, so walking it only has to find its parts.
    serde_json::from_slice::<IgnoredAny>(text).map_err(|_| Broken)?;
    let mut walk = Walk { rules, text, at: 0, copied: 0, masked: Vec::new(), way: Vec::new() };
    walk.value()?;
    let Walk { mut masked, copied, .. } = walk;
    if copied == 0 {
        return Ok(None);
    }
    masked.extend_from_slice(text.get(copied..).unwrap_or_default());
    Ok(Some(masked))
}

/// Reads on through the text; what is before `copied` has been written to `masked`.
struct Walk<'a> {
    rules: &'a Rules,
    text: &'a [u8],
    at: usize,
    copied: usize,
    masked: Vec<u8>,
    way: Vec<Way<'a>>,
}

impl<'a> Walk<'a> {
    fn value(&mut self) -> Result<(), Broken> {
        if self.way.len() > MAX_DEPTH {
            return Err(Broken);
        }
        self.space();
        let start = self.at;
        match self.peek() {
            Some(b'{') => self.object()?,
            Some(b'[') => self.array()?,
            Some(b'"') => {
                let string = self.string()?;
                self.search(start, &string);
            }
            _ => {
                self.skip_while(|byte| !matches!(byte, b',' | b']' | b'}' | b' ' | b'\t' | b'\r' | b'\n'));
                let token = self.text.get(start..self.at).and_then(|token| std::str::from_utf8(token).ok());
                self.search(start, token.ok_or(Broken)?);
            }
        }
        Ok(())
    }

    fn object(&mut self) -> Result<(), Broken> {
        self.at += 1;
        while self.more(b'}') {
            let start = self.at;
            let key = self.string()?;
            self.search(start, &key);
            self.space();
            self.at += 1;
            self.way.push(Way::Field(key));
            self.member()?;
            self.way.pop();
        }
        Ok(())
    }

    /// The value of a field, which may be one that is masked.
    fn member(&mut self) -> Result<(), Broken> {
        self.space();
        let (start, copied, written) = (self.at, self.copied, self.masked.len());
        self.value()?;
        if self.is_masked() {
            // Whatever was masked within is gone with the whole.
            self.copied = copied;
            self.masked.truncate(written);
            let rules = self.rules;
            self.replace(start, &rules.replace);
        }
        Ok(())
    }

    fn array(&mut self) -> Result<(), Broken> {
        self.at += 1;
        self.way.push(Way::Element);
        while self.more(b']') {
            self.member()?;
        }
        self.way.pop();
        Ok(())
    }

    /// Goes to the next entry of an object or array; false at its end, which is passed.
    fn more(&mut self, end: u8) -> bool {
        self.skip_while(|byte| byte.is_ascii_whitespace() || byte == b',');
        let ended = self.peek().is_none_or(|byte| byte == end);
        self.at += usize::from(ended);
        !ended
    }

    fn string(&mut self) -> Result<Cow<'a, str>, Broken> {
        let start = self.at;
        self.at += 1;
        let mut escaped = false;
        while let Some(byte) = self.peek().filter(|byte| *byte != b'"') {
            escaped |= byte == b'\\';
            self.at += if byte == b'\\' { 2 } else { 1 };
        }
        self.at += 1;
        let quoted = self.text.get(start..self.at).ok_or(Broken)?;
        if escaped {
            return serde_json::from_slice(quoted).map(Cow::Owned).map_err(|_| Broken);
        }
        let inner = quoted.get(1..quoted.len() - 1).ok_or(Broken)?;
        std::str::from_utf8(inner).map(Cow::Borrowed).map_err(|_| Broken)
    }

    /// Masks what the patterns find in the key, string or number that began at `start`.
    fn search(&mut self, start: usize, content: &str) {
        if let Some(masked) = self.rules.patterns.mask(content.as_bytes(), &self.rules.replace) {
            self.replace(start, &String::from_utf8_lossy(&masked));
        }
    }

    /// Writes `string` in place of the text from `start` to here.
    fn replace(&mut self, start: usize, string: &str) {
        self.masked.extend_from_slice(self.text.get(self.copied..start).unwrap_or_default());
        self.masked.extend_from_slice(serde_json::Value::from(string).to_string().as_bytes());
        self.copied = self.at;
    }

    fn is_masked(&self) -> bool {
        self.rules.fields.iter().any(|rule| match (rule, self.way.last()) {
            (FieldRule::Anywhere(name), Some(Way::Field(key))) => key.eq_ignore_ascii_case(name),
            (FieldRule::Anywhere(_), _) => false,
            (FieldRule::Path(steps), _) => {
                steps.len() == self.way.len() && steps.iter().zip(&self.way).all(|(step, way)| step.fits(way))
            }
        })
    }

    fn space(&mut self) {
        self.skip_while(|byte| byte.is_ascii_whitespace());
    }

    fn skip_while(&mut self, test: impl Fn(u8) -> bool) {
        while self.peek().is_some_and(&test) {
            self.at += 1;
        }
    }

    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }
}

impl Step {
    fn fits(&self, way: &Way<'_>) -> bool {
        match (self, way) {
            (Step::Field(name), Way::Field(key)) => key.eq_ignore_ascii_case(name),
            (Step::AnyField, Way::Field(_)) | (Step::Elements, Way::Element) => true,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::patterns::Patterns;
    use super::*;

    fn mask(fields: &[&str], patterns: &[&str], text: &str) -> Result<String, Broken> {
        let patterns: Vec<String> = patterns.iter().map(|&text| text.to_owned()).collect();
        let rules = Rules {
            fields: fields.iter().map(|text| FieldRule::parse("fields", text).unwrap()).collect(),
            patterns: Patterns::parse("patterns", &patterns).unwrap(),
            replace: "\"#".to_owned(),
        };
        let masked = super::mask(&rules, text.as_bytes())?;
        let masked = masked.map_or(text.to_owned(), |masked| String::from_utf8(masked).unwrap());
        serde_json::from_str::<IgnoredAny>(&masked).expect("what comes out is JSON");
        Ok(masked)
    }

    #[test]
    fn paths_begin_at_the_top_and_names_are_anywhere() {
        let text = r#"{"a":{"b":1,"c":[{"b":2},{"d":[3,[4]]}]},"b":5}"#;
        for (field, masked) in [
            ("b", r##"{"a":{"b":"\"#","c":[{"b":"\"#"},{"d":[3,[4]]}]},"b":"\"#"}"##),
            ("a.b", r##"{"a":{"b":"\"#","c":[{"b":2},{"d":[3,[4]]}]},"b":5}"##),
            ("a.c[].b", r##"{"a":{"b":1,"c":[{"b":"\"#"},{"d":[3,[4]]}]},"b":5}"##),
            ("a.c[].d[]", r##"{"a":{"b":1,"c":[{"b":2},{"d":["\"#","\"#"]}]},"b":5}"##),
            ("a.c[].d[][]", r##"{"a":{"b":1,"c":[{"b":2},{"d":[3,["\"#"]]}]},"b":5}"##),
            ("*.b", r##"{"a":{"b":"\"#","c":[{"b":2},{"d":[3,[4]]}]},"b":5}"##),
            ("a", r##"{"a":"\"#","b":5}"##),
            ("b.a", text),
        ] {
            assert_eq!(mask(&[field], &[], text).as_deref(), Ok(masked), "{field}");
        }
        assert_eq!(mask(&["[].a"], &[], r#"[{"a":1},{"a":{}}]"#).unwrap(), r##"[{"a":"\"#"},{"a":"\"#"}]"##);
    }

    #[test]
    fn an_escaped_or_repeated_key_does_not_get_around_it() {
        let masked = mask(&["token"], &[], r#"{"t\u006fken":"\"}","token":1,"token":[2]}"#).unwrap();
        assert_eq!(masked, r##"{"t\u006fken":"\"#","token":"\"#","token":"\"#"}"##);
    }

    #[test]
    fn patterns_search_strings_keys_and_numbers() {
        let masked =
            mask(&[], &["/se.ret/", "card"], r#"{"secret":["a s\u0065cret",true],"n":4111111111111111}"#);
        assert_eq!(masked.unwrap(), r##"{"\"#":["a \"#",true],"n":"\"#"}"##);
    }

    #[test]
    fn scalars_and_empty_documents_are_read() {
        for text in ["1", " \"a\" ", "null", "[]", "{}", "[ ]", "{ }", "[1 , 2]"] {
            assert_eq!(mask(&["a"], &["/zz/"], text).as_deref(), Ok(text));
        }
        assert_eq!(mask(&[], &["/zz/"], " \"zz\" ").unwrap(), " \"\\\"#\" ");
    }

    #[test]
    fn depth_is_bounded() {
        let deep = |levels| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        assert!(mask(&["a"], &[], &deep(100)).is_ok());
        assert_eq!(mask(&["a"], &[], &deep(100_000)), Err(Broken));
    }

    #[test]
    fn what_is_no_field_is_refused() {
        for wrong in ["", "a.", ".a", "a..b", "a[b]", "a[", "a[]b", "a*", "[", "a[]]"] {
            assert!(FieldRule::parse("f", wrong).is_err(), "{wrong}");
        }
    }
}
