//! What the pages in `docs` promise. Their lists of keys and metrics are what the program says
//! (`PORTCULLIS_WRITE_DOCS=1` writes them), every block of YAML is loaded, and every path and reason compared.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use http::StatusCode;
use portcullis_tests::reference::{Reference, Table, bare};
use portcullis_tests::tools::{Authority, guest, has};
use portcullis_tests::{Gateway, Http2, Origin, Setup, program, repository, request, run, until};
use serde_json::Value;

/// Sections of the configuration that have a page of their own.
const SECTIONS: [&str; 3] = ["listeners", "upstreams", "routes"];

/// Labels of metrics whose values are the gateway's own, and all there from the start.
const CLOSED: [&str; 6] = ["reason", "outcome", "error", "source", "instance", "event"];

fn page(name: &str) -> String {
    fs::read_to_string(repository().join("docs").join(name)).unwrap()
}

/// Compares the part of a page that is marked so with what it has to be.
#[track_caller]
fn assert_part(name: &str, mark: &str, content: &str) {
    let (text, begin) = (page(name), format!("<!-- {mark} -->\n"));
    let (before, rest) = text.split_once(&begin).unwrap_or_else(|| panic!("{name} has no part `{mark}`"));
    let (old, after) = rest.split_once("<!-- end -->").unwrap();
    let new = format!("\n{}\n\n", content.trim());
    if std::env::var_os("PORTCULLIS_WRITE_DOCS").is_some() {
        let path = repository().join("docs").join(name);
        fs::write(path, format!("{before}{begin}{new}<!-- end -->{after}")).unwrap();
    } else {
        assert!(
            old == new,
            "{name}, {mark}: not what the program says; PORTCULLIS_WRITE_DOCS=1 writes it anew"
        );
    }
}

fn reference() -> Reference {
    Reference::new(&run(&["schema"]).out)
}

fn shown(tables: &[Table]) -> String {
    tables.iter().map(Table::shown).collect()
}

#[test]
fn the_pages_list_every_key() {
    let reference = reference();
    assert_part("configuration.md", "options of every plugin", &shown(&[reference.plugin()]));
    assert_part("configuration.md", "keys", &shown(&reference.tables("", &SECTIONS)));
    for section in SECTIONS {
        let mark = format!("keys of {section}");
        assert_part(&format!("{section}.md"), &mark, &shown(&reference.tables(section, &[])));
    }
}

#[test]
fn every_form_of_a_value_is_explained() {
    let page = page("configuration.md");
    for word in reference().placeholders() {
        assert!(page.contains(&format!("`<{word}>`")), "configuration.md does not explain `<{word}>`");
    }
}

/// A reader must not have to guess what holds where a key is missing, and must not be told something else.
#[test]
fn every_key_says_what_holds_without_it() {
    let reference = reference();
    let (mut silent, mut wrong) = (Vec::new(), Vec::new());
    for table in reference.tables("", &[]).iter().chain([&reference.plugin()]) {
        for key in &table.keys {
            let place = format!("`{}` of `{}`", key.name, table.path);
            let says = key.required || key.fallback().is_some() || key.default.is_object();
            if !says || key.text.is_empty() {
                silent.push(place.clone());
            }
            let has_value = !matches!(&key.default, Value::Null | Value::Object(_))
                && !["", "[]", "false"].contains(&bare(&key.default).as_str());
            if let (true, Some(words)) = (has_value, &key.otherwise)
                && !words.contains(&bare(&key.default))
            {
                wrong.push(format!("{place}: {words}, but it is {}", key.default));
            }
        }
    }
    assert!(silent.is_empty(), "not described, or without a default: {silent:#?}");
    assert!(wrong.is_empty(), "not the default: {wrong:#?}");
}

/// The blocks of YAML of a page that are configurations.
fn blocks(page: &str) -> Vec<String> {
    let inside = page.split("```").skip(1).step_by(2).filter_map(|block| block.strip_prefix("yaml\n"));
    inside.filter(|block| !block.starts_with("scrape_configs:")).map(str::to_owned).collect()
}

fn says(block: &str, key: &str) -> bool {
    block.lines().any(|line| line.starts_with(&format!("{key}:")))
}

/// A block with what it leaves out.
fn completed(block: &str) -> String {
    let mut text = block.to_owned();
    if !says(block, "listeners") {
        text.push_str("listeners: [{ bind: 127.0.0.1:0 }]\n");
    }
    if !says(block, "upstreams") {
        let upstream = |name| format!("  {name}: {{ endpoints: [\"http://127.0.0.1:9\"] }}\n");
        text += &format!("upstreams:\n{}", ["api", "current", "next", "shadow"].map(upstream).concat());
    }
    if !says(block, "routes") {
        text.push_str("routes: [{ respond: {} }]\n");
    }
    text
}

#[test]
fn every_block_is_a_configuration() {
    if !has(&["openssl"]) {
        return;
    }
    let setup = Setup::new("").directory("policies");
    let authority = Authority::new(&setup.dir().join("tls"));
    for name in ["api.example.com", "shop.example.com", "gateway"] {
        authority.issue(name);
    }
    fs::write(setup.dir().join("tags.rhai"), "fn on_request(ctx) { }").unwrap();
    fs::create_dir(setup.dir().join("scripts")).unwrap();
    fs::copy(repository().join("scripts/introspect.rhai"), setup.dir().join("scripts/introspect.rhai"))
        .unwrap();
    for name in [
        "explain",
        "shadow",
        "configuration",
        "listeners",
        "upstreams",
        "routes",
        "budgets",
        "capabilities",
        "store",
        "trust",
    ] {
        for block in blocks(&page(&format!("{name}.md"))) {
            fs::write(setup.dir().join("gateway.yaml"), completed(&block)).unwrap();
            let mut check = Command::new(program());
            check
                .args(["check", "gateway.yaml"])
                .current_dir(setup.dir())
                .env("STICKY_KEY", "k".repeat(32))
                .env("REDIS_PASSWORD", "p")
                .env("SIGNING_KEY", "k");
            let checked = check.output().unwrap();
            let said = String::from_utf8_lossy(&checked.stderr);
            assert!(checked.status.success(), "{name}.md: {said}\n{block}");
        }
    }
}

#[test]
fn every_key_stands_in_a_block() {
    let reference = reference();
    let sections = SECTIONS.map(|section| (section, reference.tables(section, &[])));
    for (name, tables) in [("configuration", reference.tables("", &SECTIONS))].into_iter().chain(sections) {
        let blocks = blocks(&page(&format!("{name}.md"))).concat();
        for table in tables {
            for key in &table.keys {
                let written = [' ', '{', '\n'].map(|before| format!("{before}{}:", key.name));
                let stands = written.iter().any(|written| format!("\n{blocks}").contains(written));
                assert!(stands, "no block of {name}.md has `{}` of `{}`", key.name, table.path);
            }
        }
    }
}

/// The rows of a page's tables whose first cell is code, as the texts of their cells.
fn rows(page: &str) -> Vec<Vec<String>> {
    let lines = page.lines().filter(|line| line.starts_with("| `"));
    lines
        .map(|line| line.trim_matches('|').split('|').map(|cell| cell.trim().replace('`', "")).collect())
        .collect()
}

/// The sources below a directory without their tests, comments and line breaks.
fn sources(dir: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(repository().join(dir)).unwrap() {
        let path = entry.unwrap().path();
        let name = format!("{dir}/{}", path.file_name().unwrap().to_str().unwrap());
        if path.is_dir() && !name.ends_with("/tests") {
            found.extend(sources(&name));
        } else if name.ends_with(".rs") && !name.ends_with("/tests.rs") {
            let text = fs::read_to_string(&path).unwrap();
            let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
            let lines = code.lines().map(str::trim).filter(|line| !line.starts_with("//"));
            found.push((name, lines.collect::<Vec<_>>().join(" ")));
        }
    }
    found
}

/// Every text of two words and a dot, as reasons have it, with the status before it if its line has one.
fn codes(source: &str) -> Vec<(String, Option<u16>)> {
    let word = |word: &str| !word.is_empty() && word.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
    let mut codes = Vec::new();
    let mut before = String::new();
    for (at, part) in source.split('"').enumerate() {
        let is_code = at % 2 == 1 && part.split_once('.').is_some_and(|(one, two)| word(one) && word(two));
        if is_code {
            codes.push((part.to_owned(), status(&before)));
        }
        before = part.to_owned();
    }
    codes
}

/// The status that a piece of source names last.
fn status(source: &str) -> Option<u16> {
    if let Some((_, number)) = source.rsplit_once("Refusal::with(") {
        return number.trim_end_matches(", ").parse().ok();
    }
    if source.ends_with("Refusal::bad(") {
        return Some(400);
    }
    let (_, name) = source.rsplit_once("StatusCode::")?;
    let name = name.trim_end_matches([',', ' ']);
    let is_named = |code: &u16| {
        let code = StatusCode::from_u16(*code).unwrap();
        code.canonical_reason().is_some_and(|reason| reason.to_uppercase().replace([' ', '-'], "_") == name)
    };
    (100..600).find(is_named)
}

/// Paths of configurations that have the form of a reason.
const NO_REASONS: [&str; 3] = ["certificate.cert", "certificate.key", "client_auth.ca"];

#[test]
fn every_reason_is_explained() {
    let mut named = BTreeMap::new();
    let core = sources("core/proxy/src").into_iter().chain(sources("plugin-sdk/native/src"));
    for (_, source) in core.filter(|(name, _)| !name.ends_with("/tester.rs")) {
        let reasons = codes(&source).into_iter().filter(|(code, _)| {
            // Deciders, and paths of tables.
            let is_other = ["core.", "grants."].iter().any(|other| code.starts_with(other));
            !is_other && !NO_REASONS.contains(&code.as_str())
        });
        named.extend(reasons);
    }
    let kinds = run(&["plugins"]).out;
    let kinds: BTreeSet<_> = kinds.lines().filter_map(|line| line.split(' ').next()).collect();
    for dir in ["plugins/builtin/src", "plugins/rhai/src", "plugins/wasm/src"] {
        for (_, source) in sources(dir) {
            let is_own = |code: &str| code.split('.').next().is_some_and(|kind| kinds.contains(kind));
            named.extend(codes(&source).into_iter().filter(|(code, _)| is_own(code)));
        }
    }
    let explained: BTreeMap<_, _> = rows(&page("reasons.md"))
        .into_iter()
        .map(|row| (row[0].clone(), row[1].parse::<u16>().unwrap()))
        .collect();
    let missing: Vec<_> = named.keys().filter(|reason| !explained.contains_key(*reason)).collect();
    assert!(missing.is_empty(), "reasons.md does not explain {missing:?}");
    let gone: Vec<_> = explained.keys().filter(|reason| !named.contains_key(*reason)).collect();
    assert!(gone.is_empty(), "nothing says {gone:?}");
    for (reason, status) in named {
        assert!(status.is_none_or(|status| explained[&reason] == status), "`{reason}` has status {status:?}");
    }
}

#[test]
fn paths_become_what_the_page_says() {
    let origin = Origin::start();
    let gateway = Setup::new("plugins: [{ access_log: { target: access.log } }]\n").before(&origin).start();
    let rows = rows(&page("paths.md"));
    let (refused, kept): (Vec<_>, Vec<_>) = rows.iter().partition(|row| row[1].starts_with("path."));
    assert!(refused.len() > 5 && kept.len() > 5);
    for row in kept {
        let seen = gateway.get(&row[0]).json();
        let query = seen["query"].as_str().map(|query| format!("?{query}")).unwrap_or_default();
        assert_eq!(format!("{}{query}", seen["path"].as_str().unwrap()), row[1], "{}", row[0]);
    }
    for row in refused {
        let answer = gateway.get(&row[0]);
        let id = answer.json()["request_id"].clone();
        let line = gateway.logged(&row[0], |line| line["id"] == id);
        assert_eq!((answer.status, line["reason"].as_str()), (400, Some(row[1].as_str())), "{}", row[0]);
    }
    let asterisk = gateway.ask(&request("OPTIONS", "*")).json();
    assert_eq!(asterisk["path"], "*");
}

/// A gateway in which everything that is counted has been counted once.
fn counting(origin: &Origin, module: &[u8]) -> Gateway {
    let config = "
upstreams:
  origin: { endpoints: [\"http://${ORIGIN}\"], breaker: {}, adaptive: {} }
  shadow: { endpoints: [\"http://${ORIGIN}\"] }
routes:
  - name: api
    match: { prefix: /api }
    plugins:
      - api_key:
          hash_key: env:HASH_KEY
          anonymous: true
          keys: [{ hash: \"hmac-sha256:YstGVsybwF2d0FylsVSFTqQ1xYXbWtUVgytgeV_xc4o\", id: ann }]
      - csrf: {}
      - rbac: { rules: [{ name: all, allow: anyone }] }
      - ext_authz: { upstream: origin }
      - json_schema: { schema: {} }
      - jwt:
          optional: true
          issuers:
            - { issuer: me, audience: [a], algorithms: [HS256], keys: [{ secret: env:HASH_KEY }] }
      - rate_limit: { limits: [{ key: client, token_bucket: { rate: 10/s, burst: 20 } }] }
      - { on_error: quarantine, wasm: { file: m.wasm, config: { prefixes: [/internal] } } }
    upstream: origin
    mirror: { upstream: shadow }
";
    let setup = Setup::new(config).file("m.wasm", module).variable("HASH_KEY", "k".repeat(32));
    let gateway = setup.before(origin).start();
    assert_eq!((gateway.get("/api").status, gateway.get("/nothing").status), (200, 404));
    let mut client = Http2::open(gateway.address());
    let call = [(":method", "POST"), (":scheme", "http"), (":authority", "g"), (":path", "/api")];
    let call = call.into_iter().chain([("content-type", "application/grpc")]);
    client.fields(1, true, &call.map(|(name, value)| (name.into(), value.into())).collect::<Vec<_>>());
    let counts = |name: &str| {
        let page = gateway.admin("GET", "/metrics").text();
        page.lines().any(|line| line.starts_with(&format!("portcullis_{name}")))
    };
    until("the request to be counted", || {
        [
            "grpc_responses_total{",
            "request_duration_seconds_count",
            "refusals_total",
            "plugin_hook_duration_seconds_count",
        ]
        .iter()
        .all(|name| counts(name))
    });
    gateway
}

/// The metrics of a page as rows of a table.
fn families(page: &str) -> String {
    let mut table = "| metric | type | labels | |\n|---|---|---|---|\n".to_owned();
    let mut lines = page.lines().peekable();
    while let Some(line) = lines.next() {
        let (name, help) = line.strip_prefix("# HELP ").unwrap().split_once(' ').unwrap();
        let kind = lines.next().unwrap().rsplit(' ').next().unwrap();
        let mut labels: Vec<(String, Vec<String>)> = Vec::new();
        while let Some(sample) = lines.next_if(|line| !line.starts_with('#')) {
            for (label, value) in labels_of(sample) {
                let at = labels.iter().position(|(known, _)| *known == label).unwrap_or(labels.len());
                if at == labels.len() {
                    labels.push((label.clone(), Vec::new()));
                }
                if CLOSED.contains(&label.as_str())
                    && name != "portcullis_refusals_total"
                    && !labels[at].1.contains(&value)
                {
                    labels[at].1.push(value);
                }
            }
        }
        let labels =
            labels.iter().filter(|(label, _)| label != "le").map(|(label, values)| match values.as_slice() {
                [] => format!("`{label}`"),
                values => format!("`{label}` ({})", values.join(", ")),
            });
        let labels = labels.collect::<Vec<_>>().join(", ");
        table += &format!("| `{name}` | {kind} | {labels} | {help} |\n");
    }
    table
}

fn labels_of(sample: &str) -> Vec<(String, String)> {
    let inside = sample.split_once('{').and_then(|(_, rest)| rest.rsplit_once('}')).map(|(labels, _)| labels);
    let pairs = inside.unwrap_or_default().split("\",").filter_map(|pair| pair.split_once("=\""));
    pairs.map(|(label, value)| (label.to_owned(), value.trim_end_matches('"').to_owned())).collect()
}

#[test]
fn the_pages_list_every_metric() {
    let Some(module) = guest("block_path") else { return };
    let origin = Origin::start();
    let gateway = counting(&origin, &module);
    let families = families(&gateway.admin("GET", "/metrics").text());
    assert_part("metrics.md", "metrics", &families);
}

/// A heading as GitHub names its place.
fn anchor(heading: &str) -> String {
    let kept = |letter: &char| letter.is_alphanumeric() || matches!(letter, ' ' | '-' | '_');
    heading.to_lowercase().chars().filter(kept).collect::<String>().replace(' ', "-")
}

#[test]
fn links_lead_somewhere() {
    let root = repository();
    let mut pages: Vec<_> =
        ["README.md", "ARCHITECTURE.md", "CHANGELOG.md"].map(|name| root.join(name)).into();
    for dir in ["docs", "plugins/docs"] {
        pages.extend(fs::read_dir(root.join(dir)).unwrap().map(|entry| entry.unwrap().path()));
    }
    for page in pages {
        let text = fs::read_to_string(&page).unwrap();
        let links = text.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(link, _)| link);
        for link in links.filter(|link| !link.contains("://")) {
            let (file, place) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() { page.clone() } else { page.parent().unwrap().join(file) };
            assert!(target.exists(), "{} links to {link}", page.display());
            assert!(
                place.is_empty() || headings(&target).iter().any(|heading| heading == place),
                "{} links to {link}",
                page.display()
            );
        }
    }
}

fn headings(page: &Path) -> Vec<String> {
    let text = fs::read_to_string(page).unwrap();
    let lines = text.split("```").step_by(2).flat_map(str::lines).filter(|line| line.starts_with('#'));
    lines.map(|line| anchor(line.trim_start_matches('#').trim())).collect()
}

/// Of two headings with one name, only the first could be linked to.
#[test]
fn every_heading_has_a_place_of_its_own() {
    for entry in fs::read_dir(repository().join("docs")).unwrap() {
        let page = entry.unwrap().path();
        let headings = headings(&page);
        let different: BTreeSet<_> = headings.iter().collect();
        assert_eq!(different.len(), headings.len(), "{}: {headings:?}", page.display());
    }
}
