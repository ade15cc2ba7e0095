//! The corpus of `tests/corpus`: what clients send, and what has to become of it. Its format is described there, in
//! `README.md`.

use std::fs;

use crate::here;

/// A case of the corpus.
#[derive(Debug)]
pub struct Case {
    /// Where it stands, and what it is about.
    pub title: String,
    /// What the client sends.
    pub sent: Sent,
    /// What becomes of each of its requests.
    pub expected: Vec<Expected>,
    /// The origins that refuse what they get of it, or read it in a way of their own.
    pub unlike: Vec<String>,
}

/// What a client sends.
#[derive(Debug)]
pub enum Sent {
    /// Over HTTP/1, byte by byte.
    Bytes(Vec<u8>),
    /// Over HTTP/2: the fields of a head, the body if there is one, and the fields behind it.
    Frames {
        /// The head, with its pseudo-headers.
        head: Vec<Field>,
        /// What DATA frames hold.
        data: Option<Vec<u8>>,
        /// A second head, which ends the stream.
        trailers: Vec<Field>,
    },
}

/// A name and a value, as bytes.
pub type Field = (Vec<u8>, Vec<u8>);

/// What becomes of a request.
#[derive(Debug, Clone)]
pub enum Expected {
    /// It is answered with this status, for this reason.
    Refused(u16, String),
    /// Its HTTP/2 stream is reset with this code.
    Reset(u32),
    /// Its HTTP/2 connection is ended with this code.
    Goaway(u32),
    /// An upstream gets this.
    Forwarded(Seen),
}

/// A request as an origin saw it; bytes beyond ASCII are taken for Latin-1.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// The method.
    pub method: String,
    /// Path and query as they were sent.
    pub target: String,
    /// The fields of the head, names in lower case, sorted.
    pub headers: Vec<(String, String)>,
    /// The body, out of its framing.
    pub body: String,
    /// The trailers, like the fields of the head.
    pub trailers: Vec<(String, String)>,
}

/// Every case, file by file.
pub fn cases() -> Vec<Case> {
    let dir = here().join("corpus");
    let mut files: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| file.extension().is_some_and(|ending| ending == "txt"));
    files.sort();
    let parsed = files.iter().flat_map(|file| {
        let name = file.file_stem().unwrap().to_str().unwrap();
        parse(name, &fs::read_to_string(file).unwrap())
    });
    parsed.collect()
}

/// Bytes as Latin-1.
pub fn latin1(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| char::from(*byte)).collect()
}

fn parse(file: &str, text: &str) -> Vec<Case> {
    let mut cases: Vec<Case> = Vec::new();
    for (at, line) in text.lines().enumerate() {
        let place = format!("{file}.txt:{}", at + 1);
        if let Some(title) = line.strip_prefix("== ") {
            let sent = match file.starts_with("http2") {
                true => Sent::Frames { head: Vec::new(), data: None, trailers: Vec::new() },
                false => Sent::Bytes(Vec::new()),
            };
            let title = format!("{place}: {title}");
            cases.push(Case { title, sent, expected: Vec::new(), unlike: Vec::new() });
            continue;
        }
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let case = cases.last_mut().unwrap_or_else(|| panic!("{place}: before the first case"));
        match line.split_at(1) {
            (">", said) => case.sent.add(said.strip_prefix(' ').unwrap_or(said)),
            ("<", expected) => expect(&mut case.expected, expected.strip_prefix(' ').unwrap_or(expected)),
            ("!", origins) => case.unlike.extend(origins.split_whitespace().map(str::to_owned)),
            _ => panic!("{place}: `{line}`"),
        }
    }
    cases
}

impl Sent {
    fn add(&mut self, line: &str) {
        match self {
            Sent::Bytes(bytes) => match line.strip_suffix('\\') {
                Some(line) => bytes.extend(unescaped(line)),
                None => {
                    bytes.extend(unescaped(line));
                    bytes.extend(b"\r\n");
                }
            },
            Sent::Frames { head, data, trailers } => {
                if let Some(more) = line.strip_prefix("| ") {
                    data.get_or_insert_default().extend(unescaped(more));
                } else if let Some(trailer) = line.strip_prefix("+ ") {
                    trailers.push(field(trailer));
                } else if let Some((method, path)) = line.split_once(" /")
                    && head.is_empty()
                    && !method.starts_with(':')
                {
                    let path = format!("/{path}");
                    let usual =
                        [(":method", method), (":scheme", "http"), (":authority", "a"), (":path", &path)];
                    head.extend(usual.map(|(name, value)| (name.into(), unescaped(value))));
                } else {
                    head.push(field(line));
                }
            }
        }
    }
}

fn field(line: &str) -> Field {
    let pair = line.split_once(": ").or(line.strip_suffix(':').map(|name| (name, "")));
    let (name, value) = pair.unwrap_or_else(|| panic!("not a field: `{line}`"));
    (unescaped(name), unescaped(value))
}

fn expect(expected: &mut Vec<Expected>, line: &str) {
    if let Some(more) = line.strip_prefix("  ") {
        let Some(Expected::Forwarded(seen)) = expected.last_mut() else {
            panic!("`{line}` of what request?")
        };
        let text = |text: &str| latin1(&unescaped(text));
        let pair = |line: &str| {
            let (name, value) = line.split_once(':').unwrap_or_else(|| panic!("not a field: `{line}`"));
            (text(name), text(value.trim_start_matches(' ')))
        };
        if let Some(body) = more.strip_prefix("| ") {
            seen.body += &text(body);
        } else if let Some(trailer) = more.strip_prefix("+ ") {
            seen.trailers.push(pair(trailer));
        } else {
            seen.headers.push(pair(more));
        }
        seen.headers.sort();
        seen.trailers.sort();
        return;
    }
    let (first, second) = line.split_once(' ').unwrap_or_else(|| panic!("not an outcome: `{line}`"));
    expected.push(match first {
        "reset" => Expected::Reset(second.parse().unwrap()),
        "goaway" => Expected::Goaway(second.parse().unwrap()),
        status if status.bytes().all(|byte| byte.is_ascii_digit()) => {
            Expected::Refused(status.parse().unwrap(), second.to_owned())
        }
        method => {
            let (method, target) = (method.to_owned(), latin1(&unescaped(second)));
            Expected::Forwarded(Seen { method, target, ..Seen::default() })
        }
    });
}

/// The bytes that a text with escapes stands for: `\r`, `\n`, `\t`, `\0`, `\\`, `\x80`, `\s` for a blank at the end of a
/// line, and `\{300*ab}` for a repetition.
fn unescaped(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text;
    while let Some((plain, escape)) = rest.split_once('\\') {
        bytes.extend_from_slice(plain.as_bytes());
        let (kind, behind) = escape.split_at(1);
        rest = behind;
        match kind {
            "r" => bytes.push(b'\r'),
            "n" => bytes.push(b'\n'),
            "t" => bytes.push(b'\t'),
            "0" => bytes.push(0),
            "s" => bytes.push(b' '),
            "\\" => bytes.push(b'\\'),
            "x" => {
                let (digits, behind) = rest.split_at(2);
                bytes.push(u8::from_str_radix(digits, 16).unwrap());
                rest = behind;
            }
            "{" => {
                // What is repeated may be escaped, but not hold another repetition.
                let (inside, behind) = rest.split_once('}').unwrap();
                let (count, repeated) = inside.split_once('*').unwrap();
                bytes.extend(unescaped(repeated).repeat(count.parse().unwrap()));
                rest = behind;
            }
            other => panic!("unknown escape `\\{other}` in `{text}`"),
        }
    }
    bytes.extend_from_slice(rest.as_bytes());
    bytes
}
