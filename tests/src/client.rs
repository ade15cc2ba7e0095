//! A small HTTP/1.1 client that sends exactly what it is told, so that it shares no code, and no idea of
//! what is proper, with the gateway.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};

use serde_json::Value;
use socket2::{Domain, Socket, Type};

use crate::PATIENCE;

/// A request to be sent.
#[derive(Debug, Clone)]
pub struct Request {
    method: String,
    target: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

/// What came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The headers as they came, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body, out of its framing.
    pub body: Vec<u8>,
    /// The trailers of a chunked body.
    pub trailers: Vec<(String, String)>,
}

/// A connection that is kept from request to request.
#[derive(Debug)]
pub struct Http {
    stream: BufReader<TcpStream>,
}

/// A request to be sent.
pub fn request(method: &str, target: &str) -> Request {
    Request { method: method.to_owned(), target: target.to_owned(), headers: Vec::new(), body: Vec::new() }
}

impl Request {
    /// The same with a header more. A `host` replaces the usual one.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The same with a body and its length.
    #[must_use]
    pub fn body(self, body: impl Into<Vec<u8>>) -> Self {
        let body = body.into();
        let length = body.len().to_string();
        Request { body, ..self.header("content-length", &length) }
    }

    /// The same with a JSON body.
    #[must_use]
    pub fn json(self, body: &Value) -> Self {
        self.header("content-type", "application/json").body(body.to_string())
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = format!("{} {} HTTP/1.1\r\n", self.method, self.target).into_bytes();
        let has_host = self.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host"));
        let host = (!has_host).then(|| ("host".to_owned(), "gateway.test".to_owned()));
        for (name, value) in host.iter().chain(&self.headers) {
            bytes.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
        }
        bytes.extend_from_slice(b"\r\n");
        bytes.extend_from_slice(&self.body);
        bytes
    }
}

impl Http {
    /// Opens a connection.
    pub fn connect(address: SocketAddr) -> io::Result<Self> {
        Self::of(TcpStream::connect(address)?)
    }

    /// Opens a connection as the client with this address.
    pub fn connect_from(source: IpAddr, address: SocketAddr) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        socket.bind(&SocketAddr::new(source, 0).into())?;
        socket.connect(&address.into())?;
        Self::of(socket.into())
    }

    fn of(stream: TcpStream) -> io::Result<Self> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(Http { stream: BufReader::new(stream) })
    }

    /// Its own address.
    pub fn local(&self) -> SocketAddr {
        self.stream.get_ref().local_addr().unwrap()
    }

    /// Sends a request and reads its answer.
    pub fn ask(&mut self, request: &Request) -> io::Result<Answer> {
        self.write(&request.bytes())?;
        self.answer(&request.method)
    }

    /// Writes bytes as they are.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.get_mut().write_all(bytes)
    }

    /// Reads the answer to a request with this method.
    pub fn answer(&mut self, method: &str) -> io::Result<Answer> {
        loop {
            let (status, headers) = self.head()?;
            // An interim response is followed by the real one.
            if (100..200).contains(&status) && status != 101 {
                continue;
            }
            let mut answer = Answer { status, headers, body: Vec::new(), trailers: Vec::new() };
            if method != "HEAD" && status != 204 && status != 304 {
                self.body(&mut answer)?;
            }
            return Ok(answer);
        }
    }

    /// Whether the gateway has closed the connection; waits until it has said something or done so.
    #[track_caller]
    pub fn is_closed(&mut self) -> bool {
        match self.stream.fill_buf() {
            Ok(more) => more.is_empty(),
            Err(error) => {
                let waiting = [io::ErrorKind::WouldBlock, io::ErrorKind::TimedOut].contains(&error.kind());
                assert!(!waiting, "the connection was neither used nor closed");
                // A reset is a close too.
                true
            }
        }
    }

    fn head(&mut self) -> io::Result<(u16, Vec<(String, String)>)> {
        let status = self.line()?;
        let code = status.split(' ').nth(1).and_then(|code| code.parse().ok());
        let code = code.ok_or_else(|| broken(&format!("not a status line: `{status}`")))?;
        Ok((code, self.fields()?))
    }

    fn fields(&mut self) -> io::Result<Vec<(String, String)>> {
        let mut fields = Vec::new();
        loop {
            let line = self.line()?;
            if line.is_empty() {
                return Ok(fields);
            }
            let (name, value) =
                line.split_once(':').ok_or_else(|| broken(&format!("not a field: `{line}`")))?;
            fields.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = Vec::new();
        self.stream.read_until(b'\n', &mut line)?;
        match line.strip_suffix(b"\r\n") {
            Some(line) => Ok(String::from_utf8_lossy(line).into_owned()),
            None if line.is_empty() => Err(io::ErrorKind::UnexpectedEof.into()),
            None => Err(broken("a line without its end")),
        }
    }

    fn body(&mut self, answer: &mut Answer) -> io::Result<()> {
        if answer.header("transfer-encoding") == Some("chunked") {
            loop {
                let line = self.line()?;
                let size = chunk_size(&line).ok_or_else(|| broken(&format!("not a chunk size: `{line}`")))?;
                if size == 0 {
                    answer.trailers = self.fields()?;
                    return Ok(());
                }
                self.exactly(size, &mut answer.body)?;
                if !self.line()?.is_empty() {
                    return Err(broken("a chunk longer than its size"));
                }
            }
        }
        match answer.header("content-length").map(str::parse) {
            Some(Ok(length)) => self.exactly(length, &mut answer.body),
            Some(Err(_)) => Err(broken("not a content length")),
            None => self.stream.read_to_end(&mut answer.body).map(|_| ()),
        }
    }

    fn exactly(&mut self, length: usize, body: &mut Vec<u8>) -> io::Result<()> {
        let begin = body.len();
        body.resize(begin + length, 0);
        self.stream.read_exact(&mut body[begin..])
    }
}

/// Digits and nothing else: the gateway writes no extensions.
fn chunk_size(line: &str) -> Option<usize> {
    let is_plain = line.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_plain.then(|| usize::from_str_radix(line, 16).ok())?
}

fn broken(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

impl Answer {
    /// A header's first value.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON: with the [`Origin`](crate::Origin) behind, what it saw.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error} in the body of {}: {}", self.status, self.text()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Peer;

    #[test]
    fn a_chunk_is_as_long_as_it_says_and_its_size_is_digits() {
        let answered = |body: &str| {
            let peer = Peer::default();
            let mut http = Http::connect(peer.address()).unwrap();
            http.write(b"GET / HTTP/1.1\r\n\r\n").unwrap();
            let (mut raw, _) = peer.accept();
            raw.write(format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{body}"));
            drop(raw);
            http.answer("GET").map(|answer| answer.text())
        };
        assert_eq!(answered("2\r\nok\r\n0\r\n\r\n").unwrap(), "ok");
        for body in ["2\r\nokay\r\n0\r\n\r\n", "+2\r\nok\r\n0\r\n\r\n", "\r\n\r\n"] {
            assert!(answered(body).is_err(), "{body:?}");
        }
    }
}
