//! An origin that keeps what it gets, read as RFC 9112 says and without any tolerance, and without a line of the
//! gateway's own reading.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};

use crate::corpus::{Seen, latin1};

/// The origin, on a thread of its own that ends with the test's process.
pub struct Recorder {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Recorder {
    /// Starts it.
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::<Mutex<Vec<Seen>>>::default();
        let kept = seen.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let kept = kept.clone();
                std::thread::spawn(move || serve(&stream, &kept));
            }
        });
        Recorder { address, seen }
    }

    /// `host:port`.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The whole requests that came since this was last asked.
    pub fn take(&self) -> Vec<Seen> {
        std::mem::take(&mut self.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn serve(stream: &TcpStream, kept: &Mutex<Vec<Seen>>) {
    let mut reader = BufReader::new(stream);
    loop {
        let answer = match read(&mut reader) {
            Ok(seen) => {
                kept.lock().unwrap_or_else(PoisonError::into_inner).push(seen);
                "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
            }
            // Shown by the test as what was answered.
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                "HTTP/1.1 599 Not strict HTTP\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
            }
            Err(_) => return,
        };
        let mut writer = stream;
        if writer.write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

fn read(reader: &mut impl BufRead) -> io::Result<Seen> {
    let first = line(reader)?;
    let mut words = first.split(' ');
    let (method, target, version) = (words.next(), words.next(), words.next());
    let (Some(method), Some(target), Some("HTTP/1.1"), None) = (method, target, version, words.next()) else {
        return Err(broken(&first));
    };
    let mut seen = Seen { method: method.to_owned(), target: target.to_owned(), ..Seen::default() };
    seen.headers = fields(reader)?;
    let values = |name: &str| {
        let named = seen.headers.iter().filter(|(known, _)| known == name);
        named.map(|(_, value)| value.clone()).collect::<Vec<_>>()
    };
    match (values("content-length").as_slice(), values("transfer-encoding").as_slice()) {
        ([], []) => {}
        ([length], []) if length.bytes().all(|byte| byte.is_ascii_digit()) => {
            seen.body = exactly(reader, length.parse().map_err(|_| broken(length))?)?;
        }
        ([], [coding]) if coding == "chunked" => loop {
            let size = line(reader)?;
            let size = usize::from_str_radix(&size, 16).map_err(|_| broken(&size))?;
            if size == 0 {
                seen.trailers = fields(reader)?;
                break;
            }
            seen.body += &exactly(reader, size)?;
            if exactly(reader, 2)? != "\r\n" {
                return Err(broken("a chunk without its end"));
            }
        },
        _ => return Err(broken("framing")),
    }
    Ok(seen)
}

fn fields(reader: &mut impl BufRead) -> io::Result<Vec<(String, String)>> {
    let mut fields = Vec::new();
    loop {
        let line = line(reader)?;
        if line.is_empty() {
            fields.sort();
            return Ok(fields);
        }
        let (name, value) = line.split_once(": ").ok_or_else(|| broken(&line))?;
        let is_token = |byte: u8| byte.is_ascii_graphic() && !byte.is_ascii_uppercase();
        if name.is_empty() || !name.bytes().all(is_token) || value.trim() != value {
            return Err(broken(&line));
        }
        fields.push((name.to_owned(), value.to_owned()));
    }
}

/// A line, which ends in CRLF and has no other control bytes than tabs.
fn line(reader: &mut impl BufRead) -> io::Result<String> {
    let mut line = Vec::new();
    if reader.read_until(b'\n', &mut line)? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let text = line.strip_suffix(b"\r\n").ok_or_else(|| broken("a line without its end"))?;
    if text.iter().any(|byte| byte.is_ascii_control() && *byte != b'\t') {
        return Err(broken("a control byte"));
    }
    Ok(latin1(text))
}

fn exactly(reader: &mut impl Read, length: usize) -> io::Result<String> {
    let mut bytes = vec![0; length];
    reader.read_exact(&mut bytes)?;
    Ok(latin1(&bytes))
}

fn broken(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}
