//! `ip_filter`: lets clients in, or keeps them out, by address.
//!
//! ```yaml
//! - ip_filter:
//!     allow: [10.0.0.0/8, "2001:db8::/32"]
//!     deny: [10.6.6.6]
//!     files: { deny: [lists/blocked.txt] }
//! ```
//!
//! The most specific range decides; where the same range is allowed and denied, it is denied; where
//! none matches, `default` decides. A file has one range per line, `#` begins a comment; it is
//! watched. An IPv4 address that comes mapped into IPv6 (RFC 4291, 2.5.5.2) is that IPv4 address.
//!
//! All ranges are cut into disjoint ones at load, so a look-up is one binary search however long the
//! lists are.
//!
//! Reasons: `ip_filter.denied` (403).

use std::net::IpAddr;

use http::StatusCode;
use ipnet::IpNet;
use portcullis_plugin::{
    Admission, BuildContext, BuildError, Connection, Exchange, Hook, HookName, Needs, Plugin, PluginError,
    PluginType, Reply, SourceFile, SourcePosition,
};
use schemars::JsonSchema;
use serde::Deserialize;

const DENIED: &str = "ip_filter.denied";

/// Judges addresses.
#[derive(Debug)]
pub(crate) struct IpFilter {
    at: At,
    v4: Table,
    v6: Table,
}

/// Which addresses may come in.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Config {
    /// Addresses and CIDR ranges that may come in. Default: none.
    allow: Vec<String>,
    /// Addresses and CIDR ranges that may not. Default: none.
    deny: Vec<String>,
    /// Files with further ranges, one per line. Default: none.
    files: Files,
    /// What holds for addresses in no range. Default: `deny` if anything is allowed, else `allow`.
    default: Option<Verdict>,
    /// When to judge: `request` judges the client's address, as a trusted proxy may have told it, and
    /// answers 403; `connection` judges the peer's address and closes the connection before reading
    /// from it, in the gateway's or a listener's list only. Default: `request`.
    at: At,
}

/// Files of ranges.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Files {
    /// Files of ranges that may come in. Default: none.
    allow: Vec<String>,
    /// Files of ranges that may not. Default: none.
    deny: Vec<String>,
}

/// What becomes of an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Verdict {
    /// It may come in.
    Allow,
    /// It may not.
    Deny,
}

/// When addresses are judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum At {
    /// The client's address, once the request's head is read.
    #[default]
    Request,
    /// The peer's address, before anything is read.
    Connection,
}

impl IpFilter {
    /// The decision.
    fn judge(&self, address: IpAddr) -> Verdict {
        match address.to_canonical() {
            IpAddr::V4(address) => self.v4.find(u128::from(address.to_bits())),
            IpAddr::V6(address) => self.v6.find(address.to_bits()),
        }
    }
}

/// Disjoint ranges of addresses: a verdict holds from its start to the next start.
#[derive(Debug)]
struct Table {
    default: Verdict,
    starts: Vec<u128>,
    verdicts: Vec<Verdict>,
}

/// A range of addresses, ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Range {
    first: u128,
    last: u128,
    verdict: Verdict,
}

impl Table {
    /// Cuts nested ranges into disjoint ones. CIDR ranges contain each other or are disjoint, so a
    /// stack of those that are open tells which holds where an inner one ends.
    fn new(mut ranges: Vec<Range>, default: Verdict) -> Self {
        // Outer before inner; of equal ones the denied last, which makes it the inner one.
        ranges.sort_unstable_by_key(|range| (range.first, std::cmp::Reverse(range.last), range.verdict));
        let mut cuts: Vec<(u128, Verdict)> = Vec::with_capacity(ranges.len());
        let mut open: Vec<Range> = Vec::new();
        for range in ranges {
            close(&mut open, &mut cuts, default, Some(range.first));
            cut(&mut cuts, range.first, range.verdict);
            open.push(range);
        }
        close(&mut open, &mut cuts, default, None);
        cuts.dedup_by_key(|(_, verdict)| *verdict);
        let (starts, verdicts) = cuts.into_iter().unzip();
        Table { default, starts, verdicts }
    }

    fn find(&self, address: u128) -> Verdict {
        let after = self.starts.partition_point(|start| *start <= address);
        after.checked_sub(1).and_then(|at| self.verdicts.get(at)).copied().unwrap_or(self.default)
    }
}

/// Ends the open ranges that end before `next`, or all.
fn close(open: &mut Vec<Range>, cuts: &mut Vec<(u128, Verdict)>, default: Verdict, next: Option<u128>) {
    while let Some(range) = open.pop_if(|range| next.is_none_or(|next| range.last < next)) {
        if let Some(after) = range.last.checked_add(1) {
            cut(cuts, after, open.last().map_or(default, |outer| outer.verdict));
        }
    }
}

/// From `start` on `verdict` holds, whatever was said of that start before.
fn cut(cuts: &mut Vec<(u128, Verdict)>, start: u128, verdict: Verdict) {
    match cuts.last_mut() {
        Some(last) if last.0 == start => last.1 = verdict,
        _ => cuts.push((start, verdict)),
    }
}

/// Ranges of both families, while they are read.
#[derive(Default)]
struct Ranges {
    v4: Vec<Range>,
    v6: Vec<Range>,
}

impl Ranges {
    fn push(&mut self, net: IpNet, verdict: Verdict) {
        match net {
            IpNet::V4(net) => {
                let (first, last) = (net.network().to_bits(), net.broadcast().to_bits());
                self.v4.push(Range { first: first.into(), last: last.into(), verdict });
            }
            IpNet::V6(net) => {
                let (first, last) = (net.network().to_bits(), net.broadcast().to_bits());
                self.v6.push(Range { first, last, verdict });
            }
        }
    }

    fn read_inline(
        &mut self,
        list: &str,
        ranges: &[String],
        verdict: Verdict,
        context: &mut BuildContext<'_>,
    ) -> Result<(), BuildError> {
        for (index, text) in ranges.iter().enumerate() {
            let at = format!("{list}[{index}]");
            let net = parse(text).map_err(|message| BuildError::at(&at, message).help(HELP))?;
            if net.addr() != net.network() {
                context.warn(&at, format!("`{text}` has bits beyond its prefix, it means `{}`", net.trunc()));
            }
            self.push(net, verdict);
        }
        Ok(())
    }

    fn read_files(
        &mut self,
        list: &str,
        files: &[String],
        verdict: Verdict,
        context: &mut BuildContext<'_>,
    ) -> Result<(), BuildError> {
        for (index, path) in files.iter().enumerate() {
            let at = format!("{list}[{index}]");
            let file = context.data_file(&at, path)?;
            let text = file.text().map_err(|message| BuildError::at(&at, message))?;
            for (number, line) in text.lines().enumerate() {
                let range = line.split('#').next().unwrap_or_default().trim();
                if !range.is_empty() {
                    let net =
                        parse(range).map_err(|message| located(&at, message, &file, text, number, line))?;
                    self.push(net, verdict);
                }
            }
        }
        Ok(())
    }
}

const HELP: &str = "write an address or a CIDR range, e.g. `192.0.2.7`, `10.0.0.0/8`, `2001:db8::/32`";

fn located(
    at: &str,
    message: String,
    file: &SourceFile,
    text: &str,
    number: usize,
    line: &str,
) -> BuildError {
    let column = 1 + line.chars().take_while(|character| character.is_whitespace()).count();
    let position = SourcePosition { file: file.path.clone(), text: text.into(), line: number + 1, column };
    BuildError::at(at, message).help(HELP).within(position)
}

/// An address or a range; what is mapped from IPv4 becomes IPv4.
fn parse(text: &str) -> Result<IpNet, String> {
    let net = text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    let net: IpNet = net.map_err(|_| format!("`{text}` is no address range"))?;
    let IpNet::V6(v6) = net else { return Ok(net) };
    // ::ffff:0:0/96 is where IPv4 lies in IPv6.
    match (v6.addr().to_ipv4_mapped(), v6.prefix_len().checked_sub(96)) {
        (Some(v4), Some(prefix)) => IpNet::new(v4.into(), prefix).map_err(|error| error.to_string()),
        (Some(_), None) => Err(format!("`{text}` reaches beyond the addresses mapped from IPv4")),
        _ => Ok(net),
    }
}

impl PluginType for IpFilter {
    const KIND: &'static str = "ip_filter";
    const SUMMARY: &'static str = "lets clients in or keeps them out by address";
    const EXAMPLE: &'static str = "\
- ip_filter:
    allow: [10.0.0.0/8, '2001:db8::/32']
    deny: [10.6.6.6]
    files: { deny: [lists/blocked.txt] }
";
    type Config = Config;

    fn build(config: Config, context: &mut BuildContext<'_>) -> Result<Self, BuildError> {
        let mut ranges = Ranges::default();
        ranges.read_inline("allow", &config.allow, Verdict::Allow, context)?;
        ranges.read_inline("deny", &config.deny, Verdict::Deny, context)?;
        ranges.read_files("files.allow", &config.files.allow, Verdict::Allow, context)?;
        ranges.read_files("files.deny", &config.files.deny, Verdict::Deny, context)?;
        let lists = [&config.allow, &config.deny, &config.files.allow, &config.files.deny];
        if lists.iter().all(|list| list.is_empty()) && config.default != Some(Verdict::Deny) {
            return Err(BuildError::at("", "nothing is allowed or denied").help("give `allow` or `deny`"));
        }
        // A list that is empty for now, say a file before its first entry, is still a list.
        let any_allowed = !config.allow.is_empty() || !config.files.allow.is_empty();
        let default = config.default.unwrap_or(if any_allowed { Verdict::Deny } else { Verdict::Allow });
        Ok(IpFilter { at: config.at, v4: Table::new(ranges.v4, default), v6: Table::new(ranges.v6, default) })
    }
}

impl Plugin for IpFilter {
    fn needs(&self) -> Needs {
        Needs::hooks([match self.at {
            At::Request => HookName::OnRequest,
            At::Connection => HookName::OnConnection,
        }])
    }

    fn on_connection(&self, connection: &Connection) -> Result<Admission, PluginError> {
        Ok(match self.judge(connection.peer.ip()) {
            Verdict::Allow => Admission::Accept,
            Verdict::Deny => Admission::Drop,
        })
    }

    fn on_request<'a>(&'a self, exchange: &'a mut Exchange) -> Hook<'a> {
        match self.judge(exchange.client()) {
            Verdict::Allow => Hook::CONTINUE,
            Verdict::Deny => Hook::respond(Reply::deny(StatusCode::FORBIDDEN, DENIED)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use portcullis_plugin::{Decision, ExchangeBuilder, PluginTester, TestedPlugin};
    use serde_json::{Value, json};

    fn build(table: Value) -> TestedPlugin {
        PluginTester::new().build::<IpFilter>(table).unwrap()
    }

    fn allows(plugin: &TestedPlugin, client: &str) -> bool {
        match plugin.on_request(&mut ExchangeBuilder::get("/").peer(client).build()).unwrap() {
            Decision::Continue => true,
            Decision::Respond(reply) => {
                assert_eq!((reply.status.as_u16(), reply.reason.as_deref()), (403, Some(DENIED)));
                false
            }
            Decision::Drop => panic!("a request is answered"),
        }
    }

    #[test]
    fn the_most_specific_range_decides_and_deny_wins_a_tie() {
        let plugin = build(json!({
            "allow": ["10.0.0.0/8", "10.1.2.0/24", "10.1.2.4", "10.9.0.0/16", "2001:db8::/32"],
            "deny": ["10.1.0.0/16", "10.1.2.3", "10.9.0.0/16", "2001:db8:6::/48"],
        }));
        for (client, allowed) in [
            ("10.0.0.1", true),
            ("10.1.0.1", false),
            ("10.1.2.2", true),
            ("10.1.2.3", false),
            ("10.1.2.4", true),
            ("10.1.3.0", false),
            ("10.2.0.0", true),
            ("10.9.1.1", false),
            ("10.255.255.255", true),
            ("11.0.0.0", false),
            ("9.255.255.255", false),
            ("::ffff:10.0.0.1", true),
            ("::ffff:10.1.2.3", false),
            ("2001:db8::1", true),
            ("2001:db8:6::1", false),
            ("2001:db9::", false),
        ] {
            assert_eq!(allows(&plugin, client), allowed, "{client}");
        }
    }

    #[test]
    fn the_default_follows_from_the_lists_unless_it_is_given() {
        assert!(allows(&build(json!({"deny": ["192.0.2.1"]})), "192.0.2.2"));
        assert!(!allows(&build(json!({"allow": ["192.0.2.1"]})), "192.0.2.2"));
        assert!(allows(&build(json!({"allow": ["192.0.2.1"], "default": "allow"})), "192.0.2.2"));
        assert!(!allows(&build(json!({"default": "deny"})), "192.0.2.2"));
        let everything = build(json!({"deny": ["0.0.0.0/0", "::/0"], "allow": ["255.255.255.255"]}));
        assert!(allows(&everything, "255.255.255.255") && !allows(&everything, "ffff::"));
    }

    #[test]
    fn mapped_ranges_are_ipv4_ranges() {
        let plugin = build(json!({"deny": ["::ffff:10.0.0.0/104"]}));
        assert!(!allows(&plugin, "10.1.1.1") && allows(&plugin, "11.1.1.1"));
    }

    #[test]
    fn at_connection_the_peer_is_judged_before_anything_is_read() {
        let plugin = build(json!({"deny": ["192.0.2.0/24"], "at": "connection"}));
        assert!(!plugin.plugin().needs().wants(HookName::OnRequest));
        assert_eq!(plugin.on_connection("192.0.2.9").unwrap(), Admission::Drop);
        assert_eq!(plugin.on_connection("192.0.3.9").unwrap(), Admission::Accept);
    }

    #[test]
    fn a_wrong_range_is_named_where_it_stands() {
        let error = |table| PluginTester::new().build::<IpFilter>(table).err().unwrap();
        assert_eq!(error(json!({"deny": ["10.0.0.1", "::1", "10.0.0.0/8", "10.0.0.0/33"]})).path, "deny[3]");
        assert_eq!(error(json!({})).path, "");
        let mut tester = PluginTester::new().file("list.txt", "# ours\n10.0.0.0/8 # all\n\n  example.com\n");
        let error = tester.build::<IpFilter>(json!({"files": {"allow": ["list.txt"]}})).err().unwrap();
        assert_eq!(error.to_string(), "list.txt:4:3: `example.com` is no address range");
        let mut tester = PluginTester::new();
        tester.build::<IpFilter>(json!({"deny": ["10.0.0.1/8"]})).unwrap();
        assert!(tester.warnings()[0].message.contains("10.0.0.0/8"), "{:?}", tester.warnings());
    }

    #[test]
    fn disjoint_ranges_say_what_the_nested_ones_said() {
        let mut state = 1u64;
        let mut random = |below: u64| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            u128::from((state >> 33) % below)
        };
        for _ in 0..200 {
            let mut range = || {
                let size = 1u128 << random(7);
                let first = random(64) / size * size;
                let verdict = if random(2) == 0 { Verdict::Allow } else { Verdict::Deny };
                Range { first, last: first + size - 1, verdict }
            };
            let ranges: Vec<Range> = (0..12).map(|_| range()).collect();
            let table = Table::new(ranges.clone(), Verdict::Allow);
            for address in 0..80 {
                let hits = ranges.iter().filter(|range| (range.first..=range.last).contains(&address));
                let best = hits.min_by_key(|hit| (hit.last - hit.first, std::cmp::Reverse(hit.verdict)));
                let expected = best.map_or(Verdict::Allow, |range| range.verdict);
                assert_eq!(table.find(address), expected, "{address} in {ranges:?}");
            }
        }
    }

    #[test]
    fn a_hundred_thousand_ranges_are_one_binary_search() {
        let lines: String =
            (0..100_000u32).map(|at| format!("{}/30\n", std::net::Ipv4Addr::from_bits(at << 4))).collect();
        let mut tester = PluginTester::new().file("list.txt", lines);
        let plugin = tester.build::<IpFilter>(json!({"files": {"deny": ["list.txt"]}})).unwrap();
        for at in [0u32, 1, 50_000, 99_999] {
            let address = |offset| std::net::Ipv4Addr::from_bits((at << 4) + offset).to_string();
            assert!(!allows(&plugin, &address(0)) && !allows(&plugin, &address(3)));
            assert!(allows(&plugin, &address(4)) && allows(&plugin, &address(15)));
        }
        let ranges =
            (0..100_000u128).map(|at| Range { first: at << 4, last: (at << 4) + 3, verdict: Verdict::Deny });
        let table = Table::new(ranges.collect(), Verdict::Allow);
        assert_eq!(table.starts.len(), 200_000);
        assert!(table.starts.is_sorted());
    }
}
