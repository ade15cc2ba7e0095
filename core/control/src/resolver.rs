//! A stub resolver (RFC 1035, 5.3.1): asks a DNS server, over UDP and where an answer is too long for that
//! over TCP. It remembers nothing; for how long an answer holds is the caller's to see.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use aws_lc_rs::rand;
use simple_dns::rdata::RData;
use simple_dns::{CLASS, Name, Packet, PacketFlag, Question, RCODE, TYPE};
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

/// A record of a service (RFC 2782).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Service {
    pub(crate) priority: u16,
    pub(crate) weight: u16,
    pub(crate) port: u16,
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

    /// The addresses of a host, of both families. That one of them cannot be asked for does no harm if there are
    /// addresses of the other.
    pub(crate) async fn addresses(&self, host: &str, limit: Duration) -> Result<Answer<IpAddr>, String> {
        let four = Kind { code: TYPE::A, record: four };
        let six = Kind { code: TYPE::AAAA, record: six };
        match tokio::join!(self.search(host, &four, limit), self.search(host, &six, limit)) {
            (Ok(mut four), Ok(six)) => {
                let ttls = [&four, &six].into_iter().filter(|answer| !answer.records.is_empty());
                four.ttl = ttls.map(|answer| answer.ttl).min().unwrap_or_default();
                four.records.extend(six.records);
                Ok(four)
            }
            (Ok(answer), Err(_)) | (Err(_), Ok(answer)) if !answer.records.is_empty() => Ok(answer),
            (Err(error), _) | (_, Err(error)) => Err(error),
        }
    }

    /// The services of a name, without those that are said to be decidedly not there.
    pub(crate) async fn services(&self, name: &str, limit: Duration) -> Result<Answer<Service>, String> {
        let mut answer = self.search(name, &Kind { code: TYPE::SRV, record: service }, limit).await?;
        answer.records.retain(|service| !service.target.is_empty());
        Ok(answer)
    }

    /// The records of the first of the names meant that has any.
    async fn search<T>(&self, name: &str, kind: &Kind<T>, limit: Duration) -> Result<Answer<T>, String> {
        let mut answer = Answer { records: Vec::new(), ttl: Duration::ZERO };
        for name in self.meant(name) {
            answer = self.ask(&name, kind, limit).await?;
            if !answer.records.is_empty() {
                break;
            }
        }
        Ok(answer)
    }

    fn meant(&self, name: &str) -> Vec<String> {
        let mut names: Vec<_> = self.domains.iter().map(|domain| format!("{name}.{domain}")).collect();
        let is_whole = name.matches('.').count() >= self.dots;
        names.insert(if is_whole { 0 } else { names.len() }, name.to_owned());
        names
    }

    /// Asks one server after the other until one answers.
    async fn ask<T>(&self, name: &str, kind: &Kind<T>, limit: Duration) -> Result<Answer<T>, String> {
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
            let Some(packet) = self.answered(datagram) else { continue };
            if packet.has_flags(PacketFlag::TRUNCATION) {
                return self.send_over_tcp(server).await;
            }
            return Ok(datagram.to_vec());
        }
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

    /// What an answer says. That there is no such name is one without records.
    fn read<T>(&self, bytes: &[u8], kind: &Kind<T>) -> Result<Answer<T>, String> {
        let packet = self.answered(bytes).ok_or("what came is no answer")?;
        if !matches!(packet.rcode(), RCODE::NoError | RCODE::NameError) {
            return Err(format!("the server says {:?}", packet.rcode()));
        }
        // A chain of aliases holds as long as its first link to end.
        let shortest = packet.answers.iter().map(|record| record.ttl).min().unwrap_or_default();
        let records = packet.answers.iter().filter_map(|record| (kind.record)(&record.rdata));
        Ok(Answer { records: records.collect(), ttl: Duration::from_secs(shortest.into()) })
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
    let target = record.target.to_string();
    Some(Service { priority: record.priority, weight: record.weight, port: record.port, target })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_says_whom_to_ask_and_what_short_names_mean() {
        let text = "# a comment\ndomain a.example\nnameserver 10.0.0.1\nnameserver fe80::1\nnameserver x\n\
                    search b.example c.example\noptions timeout:1 ndots:2\n";
        let found = Resolver::configured(text);
        assert_eq!(found.servers, ["10.0.0.1:53".parse().unwrap(), "[fe80::1]:53".parse().unwrap()]);
        assert_eq!(found.meant("api.x"), ["api.x.b.example", "api.x.c.example", "api.x"]);
        assert_eq!(found.meant("api.x.y")[0], "api.x.y");
        assert_eq!(Resolver::configured("").servers, ["127.0.0.1:53".parse().unwrap()]);
        let many = "nameserver 10.0.0.1\n".repeat(9) + "search a b c d e f g h";
        let many = Resolver::configured(&many);
        assert_eq!((many.servers.len(), many.domains.len()), (MOST_SERVERS, MOST_DOMAINS));
    }
}
