//! The PROXY protocol, versions 1 and 2: a proxy that passes connections on says first whose they are
//! (<https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt>).

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use tokio::io::AsyncReadExt;
use tokio::net::{TcpStream, UnixStream};

use crate::socket::Accepted;

/// What version 2 begins with.
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// What version 1 begins with.
const WORD: &[u8; 6] = b"PROXY ";
/// Bytes of a line of version 1 at most, as its description has it.
const MAX_LINE: usize = 107;
/// Bytes of a header of version 2 at most: addresses, and whatever a proxy adds to them.
const MAX_HEADER: usize = 4096;
/// Bytes of version 2 before the addresses.
const FIXED: usize = 16;
/// How much is looked at at once: usually the whole header.
const PEEKED: usize = 256;

/// A version of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// A line of text.
    V1,
    /// Binary.
    V2,
}

/// Both ends of a client's connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addresses {
    /// The client.
    pub source: SocketAddr,
    /// What the client connected to.
    pub destination: SocketAddr,
}

/// What a header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Header {
    /// The connection is a client's.
    Client(Addresses),
    /// It is the proxy's own, a health check for example, or the proxy does not know.
    Own,
}

/// Why bytes are no header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed(pub &'static str);

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for Malformed {}

impl From<Malformed> for io::Error {
    fn from(malformed: Malformed) -> Self {
        io::Error::new(io::ErrorKind::InvalidData, malformed)
    }
}

/// The header that `bytes` begin with, and its length; none if it goes on after them.
pub fn parse(bytes: &[u8]) -> Result<Option<(Header, usize)>, Malformed> {
    if begins(bytes, WORD) {
        parse_line(bytes)
    } else if begins(bytes, SIGNATURE) {
        parse_binary(bytes)
    } else {
        Err(Malformed("it begins with something else"))
    }
}

/// Whether `bytes` begin so, as far as they are there.
fn begins(bytes: &[u8], with: &[u8]) -> bool {
    bytes.iter().zip(with).all(|(byte, expected)| byte == expected)
}

fn parse_line(bytes: &[u8]) -> Result<Option<(Header, usize)>, Malformed> {
    let within = bytes.get(..MAX_LINE).unwrap_or(bytes);
    let Some(end) = memchr::memchr(b'\n', within) else {
        return if bytes.len() < MAX_LINE { Ok(None) } else { Err(Malformed("its line is too long")) };
    };
    let line = within.get(WORD.len()..end).and_then(|line| line.strip_suffix(b"\r"));
    let line =
        line.and_then(|line| std::str::from_utf8(line).ok()).ok_or(Malformed("its line has no end"))?;
    let mut words = line.split(' ');
    let header = match words.next() {
        // What follows is to be ignored.
        Some("UNKNOWN") => Header::Own,
        Some("TCP4") => Header::Client(ends::<Ipv4Addr>(words)?),
        Some("TCP6") => Header::Client(ends::<Ipv6Addr>(words)?),
        _ => return Err(Malformed("it names an unknown protocol")),
    };
    Ok(Some((header, end + 1)))
}

/// Two addresses, then two ports.
fn ends<'a, A: FromStr + Into<IpAddr>>(
    mut words: impl Iterator<Item = &'a str>,
) -> Result<Addresses, Malformed> {
    let mut address = || {
        words.next().and_then(|word| word.parse::<A>().ok()).map(Into::into).ok_or(Malformed("an address"))
    };
    let (source, destination): (IpAddr, IpAddr) = (address()?, address()?);
    let mut port = || words.next().and_then(port).ok_or(Malformed("a port"));
    let (source_port, destination_port) = (port()?, port()?);
    if words.next().is_some() {
        return Err(Malformed("its line goes on"));
    }
    Ok(Addresses {
        source: SocketAddr::new(source, source_port),
        destination: SocketAddr::new(destination, destination_port),
    })
}

/// Digits, without a sign and without a zero in front.
fn port(word: &str) -> Option<u16> {
    let is_plain = word == "0" || !word.starts_with(['0', '+']);
    word.parse().ok().filter(|_| is_plain)
}

fn parse_binary(bytes: &[u8]) -> Result<Option<(Header, usize)>, Malformed> {
    let Some([version_command, family, high, low]) = bytes.get(SIGNATURE.len()..FIXED) else {
        return Ok(None);
    };
    if version_command >> 4 != 2 {
        return Err(Malformed("its version is not 2"));
    }
    let length = FIXED + usize::from(u16::from_be_bytes([*high, *low]));
    if length > MAX_HEADER {
        return Err(Malformed("it is too long"));
    }
    let Some(rest) = bytes.get(FIXED..length) else { return Ok(None) };
    let header = match (version_command & 0x0f, family) {
        (0, _) => Header::Own,
        (1, 0x11) => Header::Client(inet(rest).ok_or(Malformed("its addresses are incomplete"))?),
        (1, 0x21) => Header::Client(inet6(rest).ok_or(Malformed("its addresses are incomplete"))?),
        // Unspecified, or of Unix sockets, which are no address to anybody else.
        (1, 0x00 | 0x31) => Header::Own,
        (1, _) => return Err(Malformed("it names an unknown protocol")),
        _ => return Err(Malformed("it has an unknown command")),
    };
    Ok(Some((header, length)))
}

fn inet(bytes: &[u8]) -> Option<Addresses> {
    let (source, rest) = bytes.split_first_chunk::<4>()?;
    let (destination, rest) = rest.split_first_chunk::<4>()?;
    both(IpAddr::from(*source), IpAddr::from(*destination), rest)
}

fn inet6(bytes: &[u8]) -> Option<Addresses> {
    let (source, rest) = bytes.split_first_chunk::<16>()?;
    let (destination, rest) = rest.split_first_chunk::<16>()?;
    both(IpAddr::from(*source), IpAddr::from(*destination), rest)
}

fn both(source: IpAddr, destination: IpAddr, ports: &[u8]) -> Option<Addresses> {
    let (source_port, ports) = ports.split_first_chunk::<2>()?;
    let (destination_port, _) = ports.split_first_chunk::<2>()?;
    Some(Addresses {
        source: SocketAddr::new(source, u16::from_be_bytes(*source_port)),
        destination: SocketAddr::new(destination, u16::from_be_bytes(*destination_port)),
    })
}

/// The header of a client's connection; of the gateway's own without one, or where the client has no address.
pub fn header(version: Version, client: Option<&Addresses>) -> Vec<u8> {
    let client = client.filter(|client| !client.source.ip().is_unspecified());
    match (version, client.map(same_family)) {
        (Version::V1, None) => b"PROXY UNKNOWN\r\n".to_vec(),
        (Version::V1, Some(Addresses { source, destination })) => {
            let family = if source.is_ipv4() { 4 } else { 6 };
            let (from, to) = (source.ip(), destination.ip());
            format!("PROXY TCP{family} {from} {to} {} {}\r\n", source.port(), destination.port()).into()
        }
        (Version::V2, None) => [SIGNATURE.as_slice(), &[0x20, 0, 0, 0]].concat(),
        (Version::V2, Some(Addresses { source, destination })) => {
            let (family, length) = if source.is_ipv4() { (0x11, 12) } else { (0x21, 36) };
            let mut header = [SIGNATURE.as_slice(), &[0x21, family, 0, length]].concat();
            for ip in [source.ip(), destination.ip()] {
                match ip {
                    IpAddr::V4(ip) => header.extend(ip.octets()),
                    IpAddr::V6(ip) => header.extend(ip.octets()),
                }
            }
            header.extend(source.port().to_be_bytes());
            header.extend(destination.port().to_be_bytes());
            header
        }
    }
}

/// A header has room for one family: an IPv4 address beside an IPv6 one is mapped into it.
fn same_family(addresses: &Addresses) -> Addresses {
    let canonical = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
    let (source, destination) = (canonical(addresses.source), canonical(addresses.destination));
    if source.is_ipv4() == destination.is_ipv4() {
        return Addresses { source, destination };
    }
    let mapped = |address: SocketAddr| match address.ip() {
        IpAddr::V4(ip) => SocketAddr::new(ip.to_ipv6_mapped().into(), address.port()),
        IpAddr::V6(_) => address,
    };
    Addresses { source: mapped(source), destination: mapped(destination) }
}

/// Reads the header that a connection begins with, and nothing behind it.
pub(crate) async fn read(stream: &mut Accepted) -> io::Result<Header> {
    match stream {
        Accepted::Tcp(stream) => read_peeking(stream).await,
        Accepted::Unix(stream) => read_singly(stream).await,
    }
}

/// Byte by byte, because what a Unix socket holds can't be looked at.
async fn read_singly(stream: &mut UnixStream) -> io::Result<Header> {
    let mut seen = Vec::new();
    loop {
        seen.push(stream.read_u8().await?);
        if let Some((header, _)) = parse(&seen)? {
            return Ok(header);
        }
    }
}

async fn read_peeking(stream: &mut TcpStream) -> io::Result<Header> {
    let (mut seen, mut peeked) = (Vec::new(), [0; PEEKED]);
    loop {
        let taken = seen.len();
        let length = stream.peek(&mut peeked).await?;
        let bytes = peeked.get_mut(..length).unwrap_or_default();
        if bytes.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        seen.extend_from_slice(bytes);
        match parse(&seen)? {
            Some((header, end)) => {
                let rest = bytes.get_mut(..end.saturating_sub(taken)).unwrap_or_default();
                stream.read_exact(rest).await?;
                return Ok(header);
            }
            None => drop(stream.read_exact(bytes).await?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(source: &str, destination: &str) -> Addresses {
        Addresses { source: source.parse().unwrap(), destination: destination.parse().unwrap() }
    }

    /// What is written is read, whole and in every piece that lacks something.
    #[track_caller]
    fn comes_back(version: Version, client: Option<Addresses>, expected: Header) {
        let mut bytes = header(version, client.as_ref());
        let length = bytes.len();
        for end in 0..length {
            assert_eq!(parse(&bytes[..end]), Ok(None), "{end} bytes");
        }
        bytes.extend(b"GET / HTTP/1.1\r\n");
        assert_eq!(parse(&bytes), Ok(Some((expected, length))));
    }

    #[test]
    fn what_is_written_is_read() {
        for version in [Version::V1, Version::V2] {
            for (source, destination) in
                [("192.0.2.1:51234", "198.51.100.7:443"), ("[2001:db8::1]:1", "[2001:db8::2]:65535")]
            {
                let client = addresses(source, destination);
                comes_back(version, Some(client), Header::Client(client));
            }
            comes_back(version, None, Header::Own);
            let mixed = addresses("192.0.2.1:1", "[2001:db8::2]:2");
            let mapped = addresses("[::ffff:192.0.2.1]:1", "[2001:db8::2]:2");
            comes_back(version, Some(mixed), Header::Client(mapped));
        }
    }

    #[test]
    fn lines_are_taken_to_the_letter() {
        for wrong in [
            "GET / HTTP/1.1\r\n",
            "proxy TCP4 192.0.2.1 192.0.2.2 1 2\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 1 2\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 1\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 1 2 3\r\n",
            "PROXY TCP4  192.0.2.1 192.0.2.2 1 2\r\n",
            "PROXY TCP4 192.0.2.01 192.0.2.2 1 2\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 +1 2\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 01 2\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 1 65536\r\n",
            "PROXY TCP4 ::1 ::1 1 2\r\n",
            "PROXY TCP6 192.0.2.1 192.0.2.2 1 2\r\n",
            "PROXY UDP4 192.0.2.1 192.0.2.2 1 2\r\n",
            "PROXY \r\n",
        ] {
            assert!(parse(wrong.as_bytes()).is_err(), "{wrong:?}");
        }
        let unknown = b"PROXY UNKNOWN ffff::1 whatever\r\n";
        assert_eq!(parse(unknown), Ok(Some((Header::Own, unknown.len()))));
    }

    #[test]
    fn a_line_ends_in_time() {
        let line = |length: usize| format!("PROXY UNKNOWN {}\r\n", "x".repeat(length - 16));
        assert_eq!(parse(line(107).as_bytes()), Ok(Some((Header::Own, 107))));
        assert_eq!(parse(line(108).as_bytes()), Err(Malformed("its line is too long")));
        assert_eq!(parse(&line(107).as_bytes()[..106]), Ok(None));
        assert_eq!(parse(&line(108).as_bytes()[..107]).unwrap_err().to_string(), "its line is too long");
    }

    #[test]
    fn a_binary_header_is_bounded_and_complete() {
        let with = |command: u8, family: u8, rest: &[u8]| {
            let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
            [SIGNATURE.as_slice(), &[command, family], &length, rest].concat()
        };
        let addresses = [192, 0, 2, 1, 192, 0, 2, 2, 0, 1, 0, 2];
        let added = [&addresses[..], &[4; 4068]].concat();
        assert!(matches!(parse(&with(0x21, 0x11, &added)), Ok(Some((Header::Client(_), 4096)))));
        let beyond = [&added[..], &[4]].concat();
        assert_eq!(parse(&with(0x21, 0x11, &beyond)[..FIXED]), Err(Malformed("it is too long")));
        let refused = |command, family| parse(&with(command, family, &addresses)).unwrap_err().0;
        assert_eq!(refused(0x21, 0x12), "it names an unknown protocol");
        assert_eq!(refused(0x22, 0x11), "it has an unknown command");
        assert_eq!(parse(&with(0x20, 0x11, &[])), Ok(Some((Header::Own, 16))));
        assert_eq!(parse(&with(0x21, 0x31, &[0; 216])), Ok(Some((Header::Own, 232))));
        for (command, family, rest) in [
            (0x21, 0x11, &addresses[..11]),
            (0x21, 0x21, &addresses[..]),
            (0x21, 0x12, &addresses[..]),
            (0x22, 0x11, &addresses[..]),
            (0x11, 0x11, &addresses[..]),
        ] {
            assert!(parse(&with(command, family, rest)).is_err(), "{command:x} {family:x}");
        }
    }
}
