//! A stub resolver (RFC 1035, 5.3.1): asks a DNS server, over UDP and where an answer is too long for that
//! over TCP. It remembers nothing; for how long an answer holds is the caller's to see.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use aws_lc_rs::rand;
use simple_dns::rdata::RData;
use simple_dns::{CLASS, Name, Packet, PacketFlag, Question, RCODE, TYPE, header_buffer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

/// Where the system says whom to ask (resolv.conf(5)).
const SYSTEM: &str = "/etc/resolv.conf";
const PORT: u16 = 53;
/// The longest answer over UDP (RFC 1035, 4.2.1); a longer one comes cut, and is asked for over TCP.
const LONGEST_DATAGRAM: usize = 512;
/// How often each server is asked: a datagram may get lost.
const ROUNDS: u32 = 2;
/// As many servers and search domains as the system's own resolver takes.
const MOST_SERVERS: usize = 3;
const MOST_DOMAINS: usize = 6;

/// Whom to ask, and for which names.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Resolver {
    servers: Vec<SocketAddr>,
    /// Tried behind names that are not whole.
    domains: Vec<String>,
    /// A name with so many dots is tried as it is first.
    dots: usize,
}

/// What was found, and for how long it holds.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Answer<T> {
    pub(crate) records: Vec<T>,
    pub(crate) ttl: Duration,
}

/// The addresses of a host.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Addresses {
    pub(crate) records: Vec<IpAddr>,
    pub(crate) ttl: Duration,
    /// The family that could not be asked for, and why.
    pub(crate) unknown: Option<(Family, String)>,
}

/// IPv4 or IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

/// A record of a service (RFC 2782).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Service {
    pub(crate) priority: u16,
    pub(crate) weight: u16,
    pub(crate) port: u16,
    /// Whole, with the dot at its end that says so.
    pub(crate) target: String,
}

/// Records of one type.
struct Kind<T> {
    code: TYPE,
    record: fn(&RData<'_>) -> Option<T>,
}

impl Resolver {
    /// This server and no other.
    pub(crate) fn at(server: SocketAddr) -> Self {
        Resolver { servers: vec![server], domains: Vec::new(), dots: 1 }
    }

    /// As the system is configured now.
    pub(crate) fn of_system() -> Result<Self, String> {
        let text = fs::read_to_string(SYSTEM);
        text.map(|text| Resolver::configured(&text)).map_err(|error| format!("{SYSTEM}: {error}"))
    }

    fn configured(text: &str) -> Self {
        let mut found = Resolver { servers: Vec::new(), domains: Vec::new(), dots: 1 };
        for line in text.lines() {
            let mut words = line.split_ascii_whitespace();
            match words.next() {
                Some("nameserver") => {
                    let server = words.next().and_then(|word| word.parse().ok());
                    found.servers.extend(server.map(|ip: IpAddr| SocketAddr::new(ip, PORT)));
                }
                // The last of these counts.
                Some("search" | "domain") => found.domains = words.map(str::to_owned).collect(),
                Some("options") => {
                    let dots = words.find_map(|word| word.strip_prefix("ndots:")?.parse().ok());
                    found.dots = dots.unwrap_or(found.dots);
                }
                _ => {}
            }
        }
        if found.servers.is_empty() {
            found.servers.push((Ipv4Addr::LOCALHOST, PORT).into());
        }
        found.servers.truncate(MOST_SERVERS);
        found.domains.truncate(MOST_DOMAINS);
        found
    }

    /// The addresses of a host: of the first of the names meant that has any.
    pub(crate) async fn addresses(&self, host: &str, limit: Duration) -> Result<Addresses, String> {
        for name in self.meant(host) {
            let found = self.addresses_of(&name, limit).await?;
            if !found.records.is_empty() {
                return Ok(found);
            }
        }
        Ok(Addresses::none())
    }

    /// The addresses of a name, of both families. That one of them cannot be asked for does no harm if there are
    /// addresses of the other.
    async fn addresses_of(&self, name: &str, limit: Duration) -> Result<Addresses, String> {
        let four = Kind { code: TYPE::A, record: four };
        let six = Kind { code: TYPE::AAAA, record: six };
        match tokio::join!(self.ask(name, &four, limit), self.ask(name, &six, limit)) {
            (Ok(four), Ok(six)) => {
                let answers = || four.iter().chain(&six).filter(|answer| !answer.records.is_empty());
                let ttl = answers().map(|answer| answer.ttl).min().unwrap_or_default();
                let records = answers().flat_map(|answer| &answer.records).copied().collect();
                Ok(Addresses { records, ttl, unknown: None })
            }
            // A name that is not there has addresses of no family.
            (Ok(None), Err(_)) | (Err(_), Ok(None)) => Ok(Addresses::none()),
            (Ok(Some(Answer { records, ttl })), Err(why)) if !records.is_empty() => {
                Ok(Addresses { records, ttl, unknown: Some((Family::V6, why)) })
            }
            (Err(why), Ok(Some(Answer { records, ttl }))) if !records.is_empty() => {
                Ok(Addresses { records, ttl, unknown: Some((Family::V4, why)) })
            }
            (Err(why), _) | (_, Err(why)) => Err(why),
        }
    }

    /// The services of the first of the names meant that has any, without those that are said to be decidedly not
    /// there.
    pub(crate) async fn services(&self, name: &str, limit: Duration) -> Result<Answer<Service>, String> {
        let kind = Kind { code: TYPE::SRV, record: service };
        for name in self.meant(name) {
            let answer = self.ask(&name, &kind, limit).await?;
            if let Some(mut answer) = answer.filter(|answer| !answer.records.is_empty()) {
                answer.records.retain(|service| service.target != ".");
                return Ok(answer);
            }
        }
        Ok(Answer { records: Vec::new(), ttl: Duration::ZERO })
    }

    /// The names that one may stand for. A dot at its end says that it is whole.
    fn meant(&self, name: &str) -> Vec<String> {
        if let Some(whole) = name.strip_suffix('.') {
            return vec![whole.to_owned()];
        }
        let mut names: Vec<_> = self.domains.iter().map(|domain| format!("{name}.{domain}")).collect();
        let is_whole = name.matches('.').count() >= self.dots;
        names.insert(if is_whole { 0 } else { names.len() }, name.to_owned());
        names
    }

    /// Asks one server after the other until one answers; none if it says that there is no such name.
    async fn ask<T>(&self, name: &str, kind: &Kind<T>, limit: Duration) -> Result<Option<Answer<T>>, String> {
        let tries = u32::try_from(self.servers.len()).unwrap_or(u32::MAX).saturating_mul(ROUNDS);
        let each = limit / tries.max(1);
        let mut failure = "there is no DNS server".to_owned();
        for server in (0..ROUNDS).flat_map(|_| &self.servers) {
            let query = Query::new(name, kind.code)?;
            let answer = match timeout(each, query.send(*server)).await {
                Ok(Ok(answer)) => query.read(&answer, kind),
                Ok(Err(error)) => Err(error.to_string()),
                Err(_) => Err("no answer in time".to_owned()),
            };
            match answer {
                Ok(answer) => return Ok(answer),
                Err(why) => failure = format!("{name} at {server}: {why}"),
            }
        }
        Err(failure)
    }
}

/// A question under way.
struct Query<'q> {
    id: u16,
    name: &'q str,
    bytes: Vec<u8>,
}

impl<'q> Query<'q> {
    fn new(name: &'q str, code: TYPE) -> Result<Self, String> {
        let mut id = [0; 2];
        // An answer from anybody else would have to guess it, and the port.
        rand::fill(&mut id).map_err(|_| "the system has no random numbers")?;
        let id = u16::from_ne_bytes(id);
        let wrong = |error: simple_dns::SimpleDnsError| format!("`{name}` cannot be asked for: {error}");
        let mut packet = Packet::new_query(id);
        packet.set_flags(PacketFlag::RECURSION_DESIRED);
        let asked = Name::new(name).map_err(wrong)?;
        packet.questions.push(Question::new(asked, code.into(), CLASS::IN.into(), false));
        Ok(Query { id, name, bytes: packet.build_bytes_vec().map_err(wrong)? })
    }

    /// The answer of a server.
    async fn send(&self, server: SocketAddr) -> io::Result<Vec<u8>> {
        let any: IpAddr =
            if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        // A port of its own for each question, and nobody else is heard on it.
        let socket = UdpSocket::bind((any, 0)).await?;
        socket.connect(server).await?;
        socket.send(&self.bytes).await?;
        let mut answer = vec![0; LONGEST_DATAGRAM];
        loop {
            let length = socket.recv(&mut answer).await?;
            let datagram = answer.get(..length).unwrap_or_default();
            // What is cut within a record can't be read as a packet.
            if self.is_cut(datagram) {
                return self.send_over_tcp(server).await;
            }
            if self.answered(datagram).is_some() {
                return Ok(datagram.to_vec());
            }
        }
    }

    fn is_cut(&self, datagram: &[u8]) -> bool {
        let flags = PacketFlag::RESPONSE | PacketFlag::TRUNCATION;
        header_buffer::id(datagram).is_ok_and(|id| id == self.id)
            && header_buffer::has_flags(datagram, flags).unwrap_or_default()
    }

    async fn send_over_tcp(&self, server: SocketAddr) -> io::Result<Vec<u8>> {
        let mut stream = TcpStream::connect(server).await?;
        let length = u16::try_from(self.bytes.len()).unwrap_or(u16::MAX);
        stream.write_all(&[&length.to_be_bytes(), self.bytes.as_slice()].concat()).await?;
        let mut answer = vec![0; stream.read_u16().await?.into()];
        stream.read_exact(&mut answer).await?;
        Ok(answer)
    }

    /// The packet, if it is an answer to this question.
    fn answered<'p>(&self, bytes: &'p [u8]) -> Option<Packet<'p>> {
        let packet = Packet::parse(bytes).ok()?;
        let is_answer = packet.id() == self.id && packet.has_flags(PacketFlag::RESPONSE);
        let asked = packet.questions.first().map(|question| question.qname.to_string());
        (is_answer && asked.is_some_and(|asked| asked.eq_ignore_ascii_case(self.name))).then_some(packet)
    }

    /// What an answer says; none if that is that there is no such name.
    fn read<T>(&self, bytes: &[u8], kind: &Kind<T>) -> Result<Option<Answer<T>>, String> {
        let packet = self.answered(bytes).ok_or("what came is no answer")?;
        match packet.rcode() {
            RCODE::NoError => {}
            RCODE::NameError => return Ok(None),
            other => return Err(format!("the server says {other:?}")),
        }
        // A chain of aliases holds as long as its first link to end.
        let shortest = packet.answers.iter().map(|record| record.ttl).min().unwrap_or_default();
        let records = packet.answers.iter().filter_map(|record| (kind.record)(&record.rdata));
        Ok(Some(Answer { records: records.collect(), ttl: Duration::from_secs(shortest.into()) }))
    }
}

impl Addresses {
    fn none() -> Self {
        Addresses { records: Vec::new(), ttl: Duration::ZERO, unknown: None }
    }
}

impl Family {
    pub(crate) fn has(self, ip: IpAddr) -> bool {
        ip.is_ipv4() == (self == Family::V4)
    }
}

fn four(data: &RData<'_>) -> Option<IpAddr> {
    let RData::A(record) = data else { return None };
    Some(Ipv4Addr::from(record.address).into())
}

fn six(data: &RData<'_>) -> Option<IpAddr> {
    let RData::AAAA(record) = data else { return None };
    Some(Ipv6Addr::from(record.address).into())
}

fn service(data: &RData<'_>) -> Option<Service> {
    let RData::SRV(record) = data else { return None };
    let target = format!("{}.", record.target);
    Some(Service { priority: record.priority, weight: record.weight, port: record.port, target })
}

#[cfg(test)]
mod tests {
    use simple_dns::ResourceRecord;

    use super::*;

    #[test]
    fn the_system_says_whom_to_ask_and_what_short_names_mean() {
        let text = "# a comment\ndomain a.example\nnameserver 10.0.0.1\nnameserver fe80::1\nnameserver x\n\
                    search b.example c.example\noptions timeout:1 ndots:2\n";
        let found = Resolver::configured(text);
        assert_eq!(found.servers, ["10.0.0.1:53".parse().unwrap(), "[fe80::1]:53".parse().unwrap()]);
        assert_eq!(found.meant("api.x"), ["api.x.b.example", "api.x.c.example", "api.x"]);
        assert_eq!(found.meant("api.x.y")[0], "api.x.y");
        assert_eq!(found.meant("api.x."), ["api.x"]);
        assert_eq!(Resolver::configured("").servers, ["127.0.0.1:53".parse().unwrap()]);
        let many = "nameserver 10.0.0.1\n".repeat(9) + "search a b c d e f g h";
        let many = Resolver::configured(&many);
        assert_eq!((many.servers.len(), many.domains.len()), (MOST_SERVERS, MOST_DOMAINS));
    }

    /// A resolver with two search domains, and the server that it asks.
    async fn resolver() -> (Resolver, UdpSocket) {
        let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let servers = vec![server.local_addr().unwrap()];
        let domains = ["one.test", "two.test"].map(str::to_owned).into();
        (Resolver { servers, domains, dots: 2 }, server)
    }

    /// Answers what it is asked: with an address (the name's last byte), or with what is wrong.
    async fn serve(server: UdpSocket, says: fn(&str, &str) -> Result<u8, RCODE>) {
        let mut bytes = [0; LONGEST_DATAGRAM];
        loop {
            let (length, from) = server.recv_from(&mut bytes).await.unwrap();
            let query = Packet::parse(&bytes[..length]).unwrap();
            let question = query.questions[0].clone();
            let (name, is_v4) = (question.qname.clone(), question.qtype == TYPE::A.into());
            let mut reply = Packet::new_reply(query.id());
            match says(&name.to_string(), if is_v4 { "A" } else { "AAAA" }) {
                Ok(last) => {
                    let data = match is_v4 {
                        true => RData::A(Ipv4Addr::new(10, 0, 0, last).into()),
                        false => RData::AAAA(Ipv6Addr::from(u128::from(last)).into()),
                    };
                    reply.answers.push(ResourceRecord::new(name, CLASS::IN, u32::from(last), data));
                }
                Err(code) => *reply.rcode_mut() = code,
            }
            reply.questions.push(question);
            server.send_to(&reply.build_bytes_vec().unwrap(), from).await.unwrap();
        }
    }

    async fn found(host: &str, says: fn(&str, &str) -> Result<u8, RCODE>) -> Result<Vec<String>, String> {
        let (resolver, server) = resolver().await;
        let asking = resolver.addresses(host, Duration::from_secs(5));
        let answer = tokio::select! {
            answer = asking => answer?,
            () = serve(server, says) => unreachable!(),
        };
        let unknown = answer.unknown.map(|(family, _)| format!("{family:?} unknown"));
        Ok(answer.records.iter().map(ToString::to_string).chain(unknown).collect())
    }

    #[tokio::test]
    async fn one_name_answers_for_both_families() {
        // The second domain has an address of the other family, which is another host's.
        let one = |name: &str, kind: &str| match (name, kind) {
            ("api.one.test", "A") | ("api.two.test", "AAAA") => Ok(1),
            ("api.one.test", "AAAA") => Err(RCODE::NoError),
            _ => Err(RCODE::NameError),
        };
        assert_eq!(found("api", one).await.unwrap(), ["10.0.0.1"]);
        let other = |name: &str, kind: &str| match (name, kind) {
            ("api.two.test", "A") => Ok(2),
            ("api.two.test", "AAAA") => Ok(3),
            _ => Err(RCODE::NameError),
        };
        assert_eq!(found("api", other).await.unwrap(), ["10.0.0.2", "::3"]);
        assert!(found("api", |_, _| Err(RCODE::NameError)).await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn the_search_ends_where_it_cannot_be_known_whether_there_is_something() {
        let failing = |name: &str, kind: &str| match (name, kind) {
            ("api.one.test", "A") => Err(RCODE::NoError),
            ("api.one.test", _) => Err(RCODE::ServerFailure),
            _ => Ok(2),
        };
        assert!(found("api", failing).await.unwrap_err().contains("ServerFailure"));
        // A server that knows nothing of IPv6 is no obstacle.
        let old = |name: &str, kind: &str| match (name, kind) {
            ("api.one.test", "A") => Err(RCODE::NameError),
            (_, "AAAA") => Err(RCODE::ServerFailure),
            _ => Ok(2),
        };
        assert_eq!(found("api", old).await.unwrap(), ["10.0.0.2", "V6 unknown"]);
    }

    #[tokio::test]
    async fn the_target_of_a_service_is_whole() {
        let says = |name: &str, _: &str| match name {
            "a.test" => Ok(1),
            _ => Ok(9),
        };
        assert_eq!(found("a.test.", says).await.unwrap(), ["10.0.0.1", "::1"]);
    }
}
