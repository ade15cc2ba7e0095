//! HTTP/2 by hand (RFC 9113): a client that does not respect what the server asks for, and that takes of
//! a response no more than a test reads; and a server that answers as a test says.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

use crate::{Answer, PATIENCE};

/// An HTTP/2 connection, frame by frame.
#[derive(Debug)]
pub struct Http2(TcpStream);

impl Http2 {
    /// The code of a stream of which more came than there was room for (section 7).
    pub const FLOW_CONTROL_ERROR: u32 = 3;
    /// The code of a stream that the server does not take.
    pub const REFUSED_STREAM: u32 = 7;
    /// The code of a stream that is of no use any more.
    pub const CANCEL: u32 = 8;
    /// The code of a connection whose client asks for too much.
    pub const ENHANCE_YOUR_CALM: u32 = 11;

    /// Part of a body.
    pub const DATA: u8 = 0;
    /// The head of a request or response.
    pub const HEADERS: u8 = 1;
    /// What is more important (deprecated by RFC 9113).
    pub const PRIORITY: u8 = 2;
    /// The end of a stream.
    pub const RST_STREAM: u8 = 3;
    /// What a side asks of the other.
    pub const SETTINGS: u8 = 4;
    /// A question whether the other side is there.
    pub const PING: u8 = 6;
    /// The end of the connection.
    pub const GOAWAY: u8 = 7;
    /// Room for more of a body.
    pub const WINDOW_UPDATE: u8 = 8;
    /// More of a head.
    pub const CONTINUATION: u8 = 9;

    /// Opens a connection, with the settings of both sides acknowledged.
    pub fn open(address: SocketAddr) -> Self {
        Self::open_with(address, &[])
    }

    /// The same with settings of the client's: pairs of 16 and 32 bits (section 6.5.1).
    pub fn open_with(address: SocketAddr, settings: &[(u16, u32)]) -> Self {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
        let mut client = Http2(stream);
        let each = |(id, value): &(u16, u32)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat();
        let settings: Vec<u8> = settings.iter().flat_map(each).collect();
        client.write(Self::SETTINGS, 0, 0, &settings).unwrap();
        // The server's settings hold from their acknowledgement on.
        client.read_until(Self::SETTINGS);
        client.write(Self::SETTINGS, 1, 0, &[]).unwrap();
        client
    }

    /// Takes the next connection, with the settings of both sides acknowledged. These are ours: identifier and
    /// value (section 6.5.2).
    pub fn accept(listener: &TcpListener, settings: &[(u16, u32)]) -> Self {
        let (mut stream, _) = listener.accept().unwrap();
        // What waits to be sent is lost when a socket is closed before all was read from it.
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut preface = [0; 24];
        stream.read_exact(&mut preface).unwrap();
        assert_eq!(&preface, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        let mut server = Http2(stream);
        let setting = |(name, value): &(u16, u32)| [&name.to_be_bytes()[..], &value.to_be_bytes()].concat();
        let settings: Vec<u8> = settings.iter().flat_map(setting).collect();
        server.write(Self::SETTINGS, 0, 0, &settings).unwrap();
        server.read_until(Self::SETTINGS);
        server.write(Self::SETTINGS, 1, 0, &[]).unwrap();
        server
    }

    /// The stream of the next request.
    #[track_caller]
    pub fn request(&mut self) -> u32 {
        self.read_until(Self::HEADERS).1
    }

    /// A response's head with status 200 and these headers; with this flag (END_STREAM) it is all.
    pub fn respond(&mut self, stream: u32, headers: &[(&str, &str)], ends: bool) {
        let block = block(vec![0x88], headers);
        self.write(Self::HEADERS, 4 | u8::from(ends), stream, &block).unwrap();
    }

    /// A response's head of any length, in as many frames as it takes, and nothing behind it.
    pub fn respond_long(&mut self, stream: u32, headers: &[(&str, &str)]) {
        let block = block(vec![0x88], headers);
        let frames: Vec<_> = block.chunks(16 << 10).collect();
        for (at, frame) in frames.iter().enumerate() {
            let kind = if at == 0 { Self::HEADERS } else { Self::CONTINUATION };
            // END_STREAM stands in the first, END_HEADERS in the last.
            let flags = u8::from(at == 0) | if at + 1 == frames.len() { 4 } else { 0 };
            // The other side may have ended it all in between.
            if self.write(kind, flags, stream, frame).is_err() {
                return;
            }
        }
    }

    /// An interim response with status 103.
    pub fn interim(&mut self, stream: u32, headers: &[(&str, &str)]) -> io::Result<()> {
        let block = block([vec![0x08], literal(b"103")].concat(), headers);
        self.write(Self::HEADERS, 4, stream, &block)
    }

    /// Part of a body; with this flag its end.
    pub fn data(&mut self, stream: u32, data: &[u8], ends: bool) {
        self.write(Self::DATA, ends.into(), stream, data).unwrap();
    }

    /// Room for so many bytes more, on a stream or on the connection, which is stream 0.
    pub fn window_update(&mut self, stream: u32, bytes: u32) -> io::Result<()> {
        self.write(Self::WINDOW_UPDATE, 0, stream, &bytes.to_be_bytes())
    }

    /// Ends a stream.
    pub fn write_reset(&mut self, stream: u32, code: u32) {
        self.write(Self::RST_STREAM, 0, stream, &code.to_be_bytes()).unwrap();
    }

    /// Ends the connection behind this stream, without fault.
    pub fn go_away(&mut self, last: u32) {
        self.write(Self::GOAWAY, 0, 0, &[last.to_be_bytes(), [0; 4]].concat()).unwrap();
    }

    /// `GET` over http with these headers, and no body.
    pub fn get(&mut self, stream: u32, path: &str, headers: &[(&str, &str)]) {
        // END_STREAM and END_HEADERS.
        self.head(stream, 5, 0x82, path, headers);
    }

    /// `POST` over http, its body yet to come.
    pub fn post(&mut self, stream: u32, path: &str) {
        // END_HEADERS.
        self.head(stream, 4, 0x83, path, &[]);
    }

    fn head(&mut self, stream: u32, flags: u8, method: u8, path: &str, headers: &[(&str, &str)]) {
        self.write(Self::HEADERS, flags, stream, &asking(method, path, headers)).unwrap();
    }

    /// Writes what `attack` makes, turn by turn, while it reads, until the server ends the connection. The code of
    /// the end and the number of turns it took.
    #[track_caller]
    pub fn flood(self, most: u32, mut attack: impl FnMut(u32) -> Vec<Frame>) -> (u32, u32) {
        let mut writing = self.0.try_clone().unwrap();
        let mut reading = self;
        let (send, ended) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let code = loop {
                match reading.read() {
                    Ok((Self::GOAWAY, _, payload)) => break code(&payload[4..8]),
                    Ok(_) => {}
                    Err(_) => return,
                }
            };
            // Nobody listens once the test has failed.
            let _ = send.send(code);
        });
        for turn in 0..most {
            let bytes: Vec<u8> = attack(turn).iter().flat_map(Frame::bytes).collect();
            let written = writing.write_all(&bytes);
            match ended.try_recv() {
                Ok(code) => return (code, turn),
                Err(_) if written.is_err() => {
                    return (ended.recv_timeout(PATIENCE).expect("an end that is told"), turn);
                }
                Err(_) => {}
            }
        }
        (ended.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("{most} turns were borne")), most)
    }

    /// A head, or trailers, of these very fields and no others.
    pub fn fields(&mut self, stream: u32, is_last: bool, fields: &[(Vec<u8>, Vec<u8>)]) {
        let lines = fields.iter().map(|(name, value)| [vec![0], literal(name), literal(value)].concat());
        let block = lines.collect::<Vec<_>>().concat();
        // END_HEADERS, and END_STREAM.
        self.write(Self::HEADERS, 4 | u8::from(is_last), stream, &block).unwrap();
    }

    /// The stream and the code of the first reset.
    pub fn reset(&mut self) -> (u32, u32) {
        let (_, stream, payload) = self.read_until(Self::RST_STREAM);
        (stream, code(&payload))
    }

    /// Skips frames up to one of this type; returns type, stream and payload.
    #[track_caller]
    pub fn read_until(&mut self, kind: u8) -> (u8, u32, Vec<u8>) {
        loop {
            let frame = self.read().unwrap_or_else(|error| panic!("no frame of type {kind}: {error}"));
            if frame.0 == kind {
                return frame;
            }
            assert!(frame.0 != Self::RST_STREAM, "stream {} was reset", frame.1);
        }
    }

    /// The code with which the connection ends.
    pub fn end(&mut self) -> u32 {
        code(&self.read_until(Self::GOAWAY).2[4..8])
    }

    /// Writes a frame.
    pub fn write(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> io::Result<()> {
        self.0.write_all(&Frame(kind, flags, stream, payload.to_vec()).bytes())
    }

    /// Writes bytes that need not be whole frames.
    pub fn write_raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes)
    }

    /// Reads a frame: its type, stream and payload.
    pub fn read(&mut self) -> io::Result<(u8, u32, Vec<u8>)> {
        let Frame(kind, _, stream, payload) = self.read_frame()?;
        Ok((kind, stream, payload))
    }

    /// Reads a frame with its flags.
    pub fn read_frame(&mut self) -> io::Result<Frame> {
        let mut head = [0; 9];
        self.0.read_exact(&mut head)?;
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        self.0.read_exact(&mut payload)?;
        Ok(Frame(head[3], head[4], u32::from_be_bytes([head[5], head[6], head[7], head[8]]), payload))
    }
}

/// A frame: its type, flags, stream and payload.
#[derive(Debug, Clone)]
pub struct Frame(pub u8, pub u8, pub u32, pub Vec<u8>);

impl Frame {
    /// `GET` over http.
    pub fn get(stream: u32, path: &str) -> Self {
        Frame(Http2::HEADERS, 5, stream, asking(0x82, path, &[]))
    }

    /// `GET` over http whose head goes on in `CONTINUATION`, with a field written in HPACK.
    pub fn beginning(stream: u32, fields: &[u8]) -> Self {
        Frame(Http2::HEADERS, 1, stream, [&asking(0x82, "/", &[]), fields].concat())
    }

    /// A stream taken back.
    pub fn reset(stream: u32) -> Self {
        Frame(Http2::RST_STREAM, 0, stream, Http2::CANCEL.to_be_bytes().to_vec())
    }

    /// What a response says whose head is all of it, if that is written in literals: status and fields.
    pub fn plain_answer(&self) -> Option<Answer> {
        let Frame(Http2::HEADERS, flags, _, block) = self else { return None };
        // By the name of `:status` in the static table, and END_STREAM.
        let mut rest = block.strip_prefix(&[0x08]).filter(|_| flags & 1 != 0)?;
        let status = unread(&mut rest)?.parse().ok()?;
        let mut headers = Vec::new();
        while let Some(field) = rest.strip_prefix(&[0]) {
            rest = field;
            headers.push((unread(&mut rest)?, unread(&mut rest)?));
        }
        rest.is_empty().then_some(Answer { status, headers, body: Vec::new(), trailers: Vec::new() })
    }

    /// As it is written.
    pub fn bytes(&self) -> Vec<u8> {
        let Frame(kind, flags, stream, payload) = self;
        let length = &(payload.len() as u32).to_be_bytes()[1..];
        [length, &[*kind, *flags], &stream.to_be_bytes(), payload].concat()
    }
}

fn code(payload: &[u8]) -> u32 {
    u32::from_be_bytes(payload.try_into().unwrap())
}

/// The head of a request in HPACK (RFC 7541): the method and scheme from the static table, the rest as literals.
fn asking(method: u8, path: &str, headers: &[(&str, &str)]) -> Vec<u8> {
    let begin = [vec![method, 0x86, 0x04], literal(path.as_bytes()), vec![0x01], literal(b"g")].concat();
    block(begin, headers)
}

/// A head that begins so, with these headers as literals.
fn block(begin: Vec<u8>, headers: &[(&str, &str)]) -> Vec<u8> {
    let line = |(name, value): &(&str, &str)| {
        [vec![0], literal(name.as_bytes()), literal(value.as_bytes())].concat()
    };
    begin.into_iter().chain(headers.iter().flat_map(line)).collect()
}

/// A literal of less than 127 bytes, which is taken from the rest.
fn unread(rest: &mut &[u8]) -> Option<String> {
    let (length, text) = rest.split_first()?;
    let (text, behind) = text.split_at_checked(usize::from(*length)).filter(|_| *length < 127)?;
    *rest = behind;
    String::from_utf8(text.to_vec()).ok()
}

/// A string literal without Huffman coding (RFC 7541, 5.1 and 5.2).
fn literal(text: &[u8]) -> Vec<u8> {
    let mut literal = Vec::new();
    match text.len().checked_sub(127) {
        None => literal.push(text.len() as u8),
        Some(mut rest) => {
            literal.push(127);
            while rest >= 128 {
                literal.push(rest as u8 | 128);
                rest >>= 7;
            }
            literal.push(rest as u8);
        }
    }
    literal.extend_from_slice(text);
    literal
}
