//! A DNS server (RFC 1035) that says what a test wants said.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Bytes before the question.
const HEADER: usize = 12;
/// What fits into a datagram.
const DATAGRAM: usize = 512;

/// The server, on threads of its own. It ends with the test's process.
pub struct Dns {
    address: SocketAddr,
    zone: Arc<Mutex<Zone>>,
}

/// What a name has.
#[derive(Debug, Clone)]
pub enum Record {
    /// An address (A or AAAA).
    Address(IpAddr),
    /// A service (SRV): priority, weight, port and target.
    Service(u16, u16, u16, String),
}

#[derive(Default)]
struct Zone {
    /// By name, each with its time to live.
    records: BTreeMap<String, (u32, Vec<Record>)>,
    /// Questions for names.
    asked: BTreeMap<String, usize>,
    over_tcp: usize,
    failing: bool,
    /// Names and types that it fails to answer.
    concealed: BTreeSet<(String, u16)>,
    mute: bool,
}

/// A question with the bytes that it was asked with.
struct Question<'q> {
    id: &'q [u8],
    name: String,
    kind: u16,
    bytes: &'q [u8],
}

impl Dns {
    /// A server that knows no name.
    pub fn start() -> Self {
        let (udp, tcp) = (0..100).find_map(|_| both()).expect("a port for both");
        let address = udp.local_addr().expect("an address");
        let zone = Arc::new(Mutex::new(Zone::default()));
        let (serving, also_serving) = (zone.clone(), zone.clone());
        std::thread::spawn(move || serve_udp(&udp, &serving));
        std::thread::spawn(move || serve_tcp(&tcp, &also_serving));
        Dns { address, zone }
    }

    /// Where it answers.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on a name has these records, and no others, for so many seconds.
    pub fn say(&self, name: &str, ttl: u32, records: Vec<Record>) {
        self.zone().records.insert(name.to_owned(), (ttl, records));
    }

    /// From now on it knows a name no more.
    pub fn forget(&self, name: &str) {
        self.zone().records.remove(name);
    }

    /// Whether it says that it cannot answer (SERVFAIL).
    pub fn fail(&self, failing: bool) {
        self.zone().failing = failing;
    }

    /// Whether it says that it cannot answer (SERVFAIL) where it is asked for addresses of one kind.
    pub fn conceal(&self, name: &str, family: IpAddr, conceals: bool) {
        let question = (name.to_owned(), Record::Address(family).kind());
        let concealed = &mut self.zone().concealed;
        if conceals {
            concealed.insert(question)
        } else {
            concealed.remove(&question)
        };
    }

    /// Whether it says nothing at all.
    pub fn mute(&self, mute: bool) {
        self.zone().mute = mute;
    }

    /// How often a name was asked for.
    pub fn asked(&self, name: &str) -> usize {
        self.zone().asked.get(name).copied().unwrap_or_default()
    }

    /// Questions over TCP.
    pub fn over_tcp(&self) -> usize {
        self.zone().over_tcp
    }

    fn zone(&self) -> MutexGuard<'_, Zone> {
        self.zone.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn both() -> Option<(UdpSocket, TcpListener)> {
    let tcp = TcpListener::bind("127.0.0.1:0").ok()?;
    Some((UdpSocket::bind(tcp.local_addr().ok()?).ok()?, tcp))
}

fn serve_udp(socket: &UdpSocket, zone: &Mutex<Zone>) {
    let mut bytes = [0; DATAGRAM];
    while let Ok((length, from)) = socket.recv_from(&mut bytes) {
        let Some(mut answer) = answer(&bytes[..length], zone) else { continue };
        if answer.len() > DATAGRAM {
            // Cut, wherever that is, and said to be.
            answer.truncate(DATAGRAM);
            answer[2] |= 0x02;
        }
        // Whoever asked may be gone.
        let _ = socket.send_to(&answer, from);
    }
}

fn serve_tcp(listener: &TcpListener, zone: &Mutex<Zone>) {
    for stream in listener.incoming() {
        let Ok(mut stream) = stream else { continue };
        let mut length = [0; 2];
        if stream.read_exact(&mut length).is_err() {
            continue;
        }
        let mut bytes = vec![0; u16::from_be_bytes(length).into()];
        if stream.read_exact(&mut bytes).is_err() {
            continue;
        }
        zone.lock().unwrap_or_else(PoisonError::into_inner).over_tcp += 1;
        let Some(answer) = answer(&bytes, zone) else { continue };
        let length = u16::try_from(answer.len()).expect("an answer that TCP can carry");
        // Whoever asked may be gone.
        let _ = stream.write_all(&[length.to_be_bytes().as_slice(), &answer].concat());
    }
}

fn answer(bytes: &[u8], zone: &Mutex<Zone>) -> Option<Vec<u8>> {
    let question = question(bytes)?;
    let mut zone = zone.lock().unwrap_or_else(PoisonError::into_inner);
    *zone.asked.entry(question.name.clone()).or_default() += 1;
    if zone.mute {
        return None;
    }
    let known = zone.records.get(&question.name);
    let code: u8 = match known {
        _ if zone.failing || zone.concealed.contains(&(question.name.clone(), question.kind)) => 2,
        None => 3,
        Some(_) => 0,
    };
    let (ttl, records) = known.filter(|_| code == 0).cloned().unwrap_or_default();
    let records: Vec<_> = records.iter().filter(|record| record.kind() == question.kind).collect();
    let count = u16::try_from(records.len()).ok()?.to_be_bytes();
    let mut answer = [question.id, &[0x81, 0x80 | code, 0, 1], &count, &[0; 4], question.bytes].concat();
    for record in records {
        // The name is the one at the question.
        answer.extend([0xc0, HEADER as u8]);
        answer.extend(record.kind().to_be_bytes());
        answer.extend(1_u16.to_be_bytes());
        answer.extend(ttl.to_be_bytes());
        let data = record.data();
        answer.extend(u16::try_from(data.len()).ok()?.to_be_bytes());
        answer.extend(data);
    }
    Some(answer)
}

fn question(bytes: &[u8]) -> Option<Question<'_>> {
    let (mut labels, mut at) = (Vec::new(), HEADER);
    loop {
        let length = usize::from(*bytes.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        labels.push(String::from_utf8_lossy(bytes.get(at..at + length)?).to_ascii_lowercase());
        at += length;
    }
    let kind = u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?);
    Some(Question { id: bytes.get(..2)?, name: labels.join("."), kind, bytes: bytes.get(HEADER..at + 4)? })
}

impl Record {
    fn kind(&self) -> u16 {
        match self {
            Record::Address(IpAddr::V4(_)) => 1,
            Record::Address(IpAddr::V6(_)) => 28,
            Record::Service(..) => 33,
        }
    }

    fn data(&self) -> Vec<u8> {
        match self {
            Record::Address(IpAddr::V4(ip)) => ip.octets().into(),
            Record::Address(IpAddr::V6(ip)) => ip.octets().into(),
            Record::Service(priority, weight, port, target) => {
                let mut data: Vec<u8> =
                    [priority, weight, port].into_iter().flat_map(|number| number.to_be_bytes()).collect();
                for label in target.split('.').filter(|label| !label.is_empty()) {
                    data.push(u8::try_from(label.len()).expect("a short label"));
                    data.extend(label.as_bytes());
                }
                data.push(0);
                data
            }
        }
    }
}
