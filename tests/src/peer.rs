//! Both sides of a connection by hand, for what no library would do.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};

use crate::PATIENCE;

/// An upstream by hand, which answers what a test says.
#[derive(Debug)]
pub struct Peer(TcpListener);

/// A connection, read and written by hand.
#[derive(Debug)]
pub struct Raw(BufReader<TcpStream>);

impl Default for Peer {
    fn default() -> Self {
        Peer(TcpListener::bind("127.0.0.1:0").unwrap())
    }
}

impl Peer {
    /// `host:port`.
    pub fn address(&self) -> SocketAddr {
        self.0.local_addr().unwrap()
    }

    /// The next connection, and the head of the request on it, in lower case.
    pub fn accept(&self) -> (Raw, String) {
        let mut raw = Raw::new(self.0.accept().unwrap().0);
        let head = raw.head().to_lowercase();
        (raw, head)
    }

    /// Whether nobody has connected.
    pub fn is_alone(&self) -> bool {
        self.0.set_nonblocking(true).unwrap();
        let accepted = self.0.accept();
        self.0.set_nonblocking(false).unwrap();
        accepted.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
    }
}

impl Raw {
    /// A connection to the gateway.
    #[track_caller]
    pub fn connect(address: SocketAddr) -> Self {
        Raw::new(TcpStream::connect(address).unwrap())
    }

    fn new(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Raw(BufReader::new(stream))
    }

    /// The connection itself.
    pub fn stream(&self) -> &TcpStream {
        self.0.get_ref()
    }

    /// Writes bytes as they are.
    #[track_caller]
    pub fn write(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.get_mut().write_all(bytes.as_ref()).unwrap();
    }

    /// Reads all up to a blank line.
    #[track_caller]
    pub fn head(&mut self) -> String {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert!(self.0.read_line(&mut head).unwrap() > 0, "ended within a head: {head}");
        }
        head
    }

    /// Reads what must be these bytes.
    #[track_caller]
    pub fn expect(&mut self, bytes: &[u8]) {
        let mut read = vec![0; bytes.len()];
        self.0.read_exact(&mut read).unwrap();
        assert_eq!(String::from_utf8_lossy(&read), String::from_utf8_lossy(bytes));
    }

    /// Reads to the end, which may be a reset.
    #[track_caller]
    pub fn rest(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        match self.0.read_to_end(&mut rest) {
            Ok(_) => {}
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}"),
        }
        rest
    }

    /// Ends what is written.
    pub fn finish(&self) {
        self.0.get_ref().shutdown(Shutdown::Write).unwrap();
    }
}
