use super::*;
use crate::HostHeader;
use crate::config::{Action, Admin, ChainEntry, Predicate};
use crate::on_error::OnError;
use crate::traffic::Target;

const FULL: &str = r#"
workers: 2
state_dir: /var/lib/portcullis
pid_file: /run/portcullis.pid
admin: { bind: "127.0.0.1:9902" }
log: { level: debug, format: json }
drain: 1m
limits: { body: unlimited, whole_bodies: 64MiB }
trusted_proxies: [10.0.0.0/8, "::1"]
listeners:
  - name: public
    bind: ["0.0.0.0:8443", "[::]:8443"]
    tls:
      certificates: [{ cert: a.pem, key: a.key }, { cert: b.pem, key: b.key }]
      min_version: 1.3
      policy: modern
      alpn: [http/1.1]
      client_auth: { mode: required, ca: ca.pem }
    http2: { max_streams: 50 }
    limits: { connections: 10, header_bytes: 8KiB, header_count: 50, header_timeout: 5s, idle_timeout: 30s }
    plugins: [request_id]
  - bind: 0.0.0.0:8080
    redirect_https: { port: 8443, status: 301 }
plugins:
  - request_id
  - policies
  - { name: inner, cors: { origins: ["*"] }, on_error: allow, timeout: 5s }
  - jwt:
policies: { dir: policies }
upstreams:
  api:
    endpoints:
      - http://127.0.0.1:9000
      - { url: "http://[::1]:9001", weight: 3 }
    timeouts: { connect: 1s, response: 5s, idle: 10s, body: 20s, tunnel: 1h }
    max_idle: 8
    retries: 0
    host: endpoint
routes:
  - name: users
    match:
      hosts: [api.example.com, "*.example.com"]
      path: /users/{id}
      methods: [GET, POST]
      headers: { x-tenant: acme, X-Y: { present: true }, x-z: { regex: "^a" } }
      query: { version: "2" }
    plugins: [{ cors: { origins: [] } }]
    rewrite: { path: "/internal/{id}", host: internal.example }
    upgrades: [WebSocket]
    upstream: api
  - match: { prefix: /old }
    redirect: { to: "https://x{path}" }
  - respond: { status: 404, headers: { retry-after: "60" }, json: { error: none } }
"#;

fn env(name: &str) -> Option<String> {
    match name {
        "PORT" => Some("8080".to_owned()),
        "TOKEN" => Some("s3cret".to_owned()),
        _ => None,
    }
}

fn loaded(text: &str) -> Loaded {
    parse(Path::new("config/x.yaml"), text, &env).unwrap_or_else(|errors| panic!("{errors}"))
}

fn errors(text: &str) -> Diagnostics {
    match parse(Path::new("config/x.yaml"), text, &env) {
        Ok(_) => panic!("accepted"),
        Err(errors) => errors,
    }
}

/// A configuration with a listener and an upstream, and whatever else.
fn with(rest: &str) -> String {
    format!(
        "listeners: [{{ bind: 0.0.0.0:80 }}]\nupstreams: {{ api: {{ endpoints: [http://a:1] }} }}\n{rest}"
    )
}

#[track_caller]
fn assert_rendered(text: &str, expected: &str) {
    let rendered = errors(text).render(false);
    assert_eq!(rendered, expected.trim_start_matches('\n'), "\n{rendered}");
}

/// The messages only, each with its line.
fn messages(text: &str) -> Vec<String> {
    let message = |d: &Diagnostic| format!("{}: {}", d.span.unwrap_or_default().line, d.message);
    errors(text).0.iter().map(message).collect()
}

#[track_caller]
fn assert_message(rest: &str, expected: &str) {
    assert_eq!(messages(&with(rest)), [expected]);
}

#[test]
fn everything_that_can_be_said_is_read() {
    let Loaded { config, dir, warnings, .. } = loaded(FULL);
    assert_eq!(dir, Path::new("config"));
    assert!(warnings.is_empty());
    assert_eq!(config.workers.map(|workers| workers.get()), Some(2));
    assert!(matches!(config.admin, Admin::On(admin) if admin.bind.0.port() == 9902));
    assert_eq!(config.drain.to_string(), "1m");
    assert_eq!(config.limits.body.bytes(), None);
    assert_eq!(
        config.trusted_proxies.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["10.0.0.0/8", "::1/128"]
    );
    let [public, plain] = &config.listeners[..] else { panic!() };
    assert_eq!(public.bind.len(), 2);
    assert_eq!(public.tls.as_ref().unwrap().certificates.len(), 2);
    assert_eq!(public.limits.header_bytes.0, 8192);
    assert_eq!(plain.name, "0.0.0.0:8080");
    assert_eq!(plain.redirect_https.unwrap().status.code(), 301);
    let api = &config.upstreams[0];
    assert_eq!(
        (api.name.as_str(), api.endpoints[1].weight.get(), &api.host),
        ("api", 3, &HostHeader::Endpoint)
    );
    let [users, old, other] = &config.routes[..] else { panic!() };
    assert_eq!(users.matches.headers.len(), 3);
    assert_eq!(users.matches.query["version"], Predicate::Is("2".to_owned()));
    assert_eq!(users.action, Action::Upstream(Target::Upstream("api".to_owned())));
    assert_eq!(old.name, "route-1");
    assert!(matches!(&old.action, Action::Redirect(redirect) if redirect.status.code() == 308));
    assert!(matches!(&other.action, Action::Respond(respond) if respond.status.code() == 404));
}

#[test]
fn plugins_keep_their_tables_unread() {
    let loaded = loaded(FULL);
    let [
        ChainEntry::Plugin(bare),
        ChainEntry::Policies(span),
        ChainEntry::Plugin(cors),
        ChainEntry::Plugin(jwt),
    ] = &loaded.config.plugins[..]
    else {
        panic!()
    };
    assert_eq!((bare.kind.as_str(), bare.table.to_json()), ("request_id", serde_json::json!({})));
    assert_eq!((span.line, span.column), (26, 5));
    assert_eq!(cors.options.name.as_deref(), Some("inner"));
    assert_eq!(cors.options.on_error, OnError::Allow);
    assert_eq!(cors.options.timeout.unwrap().to_string(), "5s");
    assert_eq!(cors.path, "plugins[2].cors");
    assert_eq!(cors.table.to_json(), serde_json::json!({ "origins": ["*"] }));
    assert_eq!((jwt.kind.as_str(), jwt.table.to_json()), ("jwt", serde_json::json!({})));
    assert_eq!(jwt.kind_span.line, 28);
    let late = loaded.error("plugins[2].cors.origins[0]", "`*` with credentials");
    assert_eq!((late.span.unwrap().line, late.span.unwrap().column), (27, 38));
}

#[test]
fn a_line_is_enough_and_the_rest_are_defaults() {
    let config = loaded("listeners: [{ bind: 127.0.0.1:0 }]\n").config;
    assert!(matches!(config.admin, Admin::On(admin) if admin.bind.to_string() == "127.0.0.1:9901"));
    assert_eq!(config.drain.to_string(), "30s");
    assert_eq!(config.limits.whole_bodies.to_string(), "256MiB");
    assert_eq!(config.listeners[0].http2.max_streams.get(), 100);
    assert_eq!(loaded("admin: off\nlisteners: [{ bind: 127.0.0.1:0 }]\n").config.admin, Admin::Off);
}

#[test]
fn the_environment_fills_scalars() {
    let config =
        loaded(&with("workers: ${WORKERS:-3}\nroutes: [{ respond: { status: 204, body: \"${TOKEN}\" } }]\n"))
            .config;
    assert_eq!(config.workers.map(|workers| workers.get()), Some(3));
    assert!(matches!(&config.routes[0].action, Action::Respond(r) if r.body.as_deref() == Some("s3cret")));
    let config = loaded("listeners:\n  - bind: 0.0.0.0:${PORT}\n").config;
    assert_eq!(config.listeners[0].bind[0].to_string(), "0.0.0.0:8080");
}

#[test]
fn mistake_1_a_misspelt_key() {
    assert_rendered(
        "listeners:\n  - bind: 0.0.0.0:80\n    pluggins: []\n",
        "
error: unknown key `pluggins` in `listeners[0]`
 --> config/x.yaml:3:5
  |
3 |     pluggins: []
  |     ^^^^^^^^ did you mean `plugins`?
",
    );
}

#[test]
fn mistake_2_a_number_without_unit() {
    assert_rendered(
        &with("drain: 10\n"),
        "
error: drain: expected a duration such as `10s`, found number 10
 --> config/x.yaml:3:8
  |
3 | drain: 10
  |        ^^
",
    );
}

#[test]
fn mistake_3_a_missing_key() {
    assert_rendered(
        "listeners:\n  - name: public\n",
        "
error: missing key `bind` in `listeners[0]`
 --> config/x.yaml:2:5
  |
2 |   - name: public
  |     ^
",
    );
}

#[test]
fn mistake_4_an_upstream_that_is_not_there() {
    assert_rendered(
        &with("routes:\n  - upstream: apj\n"),
        "
error: routes[0].upstream: there is no upstream `apj`
 --> config/x.yaml:4:15
  |
4 |   - upstream: apj
  |               ^^^ did you mean `api`?
",
    );
}

#[test]
fn mistake_5_a_plugins_options_beside_it() {
    assert_rendered(
        &with("plugins:\n  - cors:\n    origins: []\n"),
        "
error: plugins[0]: `origins` stands beside the plugin `cors`
 --> config/x.yaml:5:5
  |
5 |     origins: []
  |     ^^^^^^^ options of `cors` go below it, further indented; a second plugin begins with `-`
",
    );
}

#[test]
fn mistake_6_a_socket_without_a_place() {
    assert_rendered(
        "listeners: [{ bind: 0.0.0.0:80 }]\nupstreams:\n  api:\n    endpoints: [unix:app.sock]\n",
        "
error: upstreams.api.endpoints[0]: a Unix socket has an absolute path such as `unix:/run/app.sock`
 --> config/x.yaml:4:17
  |
4 |     endpoints: [unix:app.sock]
  |                 ^^^^^^^^^^^^^
",
    );
}

#[test]
fn mistake_7_an_unset_variable() {
    assert_rendered(
        &with("pid_file: ${NOPE}/x.pid\n"),
        "
error: environment variable `NOPE` is not set
 --> config/x.yaml:3:11
  |
3 | pid_file: ${NOPE}/x.pid
  |           ^^^^^^^^^^^^^ set it, or give a default: `${NOPE:-default}`
",
    );
}

#[test]
fn mistake_8_a_repeated_key() {
    assert_rendered(
        &with("drain: 1s\ndrain: 2s\n"),
        "
error: key `drain` stands here twice
 --> config/x.yaml:4:1
  |
4 | drain: 2s
  | ^^^^^
",
    );
}

#[test]
fn mistake_9_an_unknown_word() {
    assert_rendered(
        &with("log: { level: warning }\n"),
        "
error: log.level: unknown value `warning`
 --> config/x.yaml:3:15
  |
3 | log: { level: warning }
  |               ^^^^^^^ possible values: `error`, `warn`, `info`, `debug`, `trace`
",
    );
}

#[test]
fn mistake_10_broken_yaml() {
    assert_rendered(
        "listeners:\n  - bind: [0.0.0.0:80\n    name: x\n",
        "
error: not valid YAML: illegal placement of ':' indicator
 --> config/x.yaml:3:9
  |
3 |     name: x
  |         ^ is a `]`, `}` or quote missing above? a text that holds `: ` must be quoted
",
    );
}

#[test]
fn all_mistakes_are_shown_at_once_in_file_order() {
    let text = "\
drain: soon
listeners:
  - bind: nowhere
    http2: { max_streams: 0 }
    tls: {}
  - bnd: 0.0.0.0:80
routes:
  - match: { path: users }
    upstream: api
    plugins: [{ cors: {}, timeout: 5 }, policies]
  - redirect: { to: /, status: 200 }
  - upstream: a
    respond: {}
  - name: x
upstreams: { api: { endpoints: [] , retries: -1 } }
nonsense: 1
";
    assert_eq!(
        messages(text),
        [
            "1: drain: expected a duration such as `10s`, found string `soon`",
            "3: listeners[0].bind: expected an IP address and port such as `0.0.0.0:8080` or `[::]:8080`, or a Unix socket such as `unix:/run/portcullis.sock`, found string `nowhere`",
            "4: listeners[0].http2.max_streams: expected a whole number, 1 or more, found number 0",
            "5: missing key `certificates` in `tls`",
            "6: unknown key `bnd` in `listeners[1]`",
            "8: routes[0].match.path: a path begins with `/`",
            "10: routes[0].plugins[0].timeout: expected a duration such as `10s`, found number 5",
            "10: routes[0].plugins[1]: `policies` can only stand in the gateway's own list of plugins",
            "11: routes[1].redirect.status: 200 is no redirect: use 301, 302, 303, 307 or 308",
            "13: routes[2]: a route has one action: either `upstream` or `respond`",
            "14: routes[3]: a route needs one of `upstream`, `redirect`, `respond`",
            "15: upstreams.api.endpoints: expected at least one endpoint",
            "15: upstreams.api.retries: expected a whole number from 0 to 255, found number -1",
            "16: unknown key `nonsense`",
        ]
    );
}

#[test]
fn errors_of_values_hide_no_contradictions_and_cause_no_further_errors() {
    let text = "\
listeners:
  - { bind: [nowhere, 0.0.0.0:80], plugins: [{ cors: {}, timeout: 5 }, cors] }
  - { name: b, bind: 0.0.0.0:81 }
  - { name: b, bind: [0.0.0.0:81, 0.0.0.0:82] }
plugins: [policies, { cors: {}, jwt: {} }, request_id, request_id]
policies: { dri: policies }
upstreams: { api: { endpoints: [ftp://a] }, spare: { endpoints: [http://a] } }
routes:
  - { match: { hosts: [a b, a.b, http://c], methods: [get, GET] }, upstream: api }
  - { mach: { path: /a }, upstream: nope }
  - { upstream: api }
  - { match: { hosts: }, upstream: api }
";
    assert_eq!(
        messages(text),
        [
            "2: listeners[0].bind[0]: expected an IP address and port such as `0.0.0.0:8080` or `[::]:8080`, or a Unix socket such as `unix:/run/portcullis.sock`, found string `nowhere`",
            "2: listeners[0].plugins[0].timeout: expected a duration such as `10s`, found number 5",
            "2: listeners[0].plugins[1]: a second `cors` without a name",
            "4: listeners[2].name: the name `b` is taken",
            "4: listeners[2].bind[0]: 0.0.0.0:81 is already used by listener `b`",
            "5: plugins[1]: `jwt` stands beside the plugin `cors`",
            "5: plugins[3]: a second `request_id` without a name",
            "6: unknown key `dri` in `policies`",
            "7: upstreams.api.endpoints[0]: expected an address such as `http://10.0.0.1:8080`, `https://api.internal` or `unix:/run/app.sock`, found string `ftp://a`",
            "9: routes[0].match.hosts[0]: expected a host name such as `api.example.com` or `*.example.com`, found string `a b`",
            "9: routes[0].match.hosts[2]: `http://c` is no host name: leave scheme and path out",
            "9: routes[0].match.methods[0]: methods are uppercase: `GET`",
            "10: unknown key `mach` in `routes[1]`",
            "10: routes[1].upstream: there is no upstream `nope`",
            "12: routes[3].match.hosts: expected a list, found nothing",
        ]
    );
    assert_eq!(messages("listeners: 7\nroutes: [{ upstream: a }]\nupstreams: x\n").len(), 2);
}

#[test]
fn what_could_be_read_is_there_beside_the_errors() {
    let text = "listeners: [7, { bind: 0.0.0.0:80 }]\nroutes: [{ respond: 7 }, { respond: {} }]\n";
    let (loaded, errors) = parse_partly(Path::new("x.yaml"), text, &env).unwrap();
    assert!(errors.has_errors());
    assert_eq!(loaded.config.listeners[1].bind.len(), 1);
    assert!(loaded.config.routes.iter().map(|route| route.whole).eq([false, true]));
}

#[test]
fn a_modern_policy_has_no_use_for_an_old_version() {
    let warnings = |tls: &str| {
        let certificates = "certificates: [{ cert: a, key: b }]";
        loaded(&format!("listeners: [{{ bind: 0.0.0.0:80, tls: {{ {certificates}, {tls} }} }}]\n")).warnings.0
    };
    let found = warnings("policy: modern, min_version: \"1.2\"");
    assert_eq!(found[0].message, "listeners[0].tls.min_version: `policy: modern` accepts TLS 1.3 only");
    for fine in ["policy: modern", "policy: modern, min_version: \"1.3\"", "min_version: \"1.2\""] {
        assert!(warnings(fine).is_empty(), "{fine}");
    }
}

#[test]
fn what_contradicts_is_refused() {
    assert_eq!(messages("workers: 1\n"), ["1: listeners: at least one listener is needed"]);
    assert_message(
        "admin: { bind: 0.0.0.0:80 }\n",
        "1: listeners[0].bind[0]: 0.0.0.0:80 is already used by the admin interface",
    );
    assert_message("workers: 1025\n", "3: workers: more than 1024 workers");
    assert_message("plugins: [policies]\n", "3: plugins[0]: there is no policy directory");
    assert_message(
        "policies: { dir: p }\nplugins: [policies, policies]\n",
        "4: plugins[1]: `policies` stands here twice",
    );
    assert_message("plugins: [cors, { cors: {} }]\n", "3: plugins[1]: a second `cors` without a name");
    assert_message(
        "routes: [{ upstream: api, match: { path: /a, prefix: /b } }]\n",
        "3: routes[0].match.prefix: a match has either `path` or `prefix`",
    );
    assert_message(
        "routes: [{ respond: { body: a, json: {} } }]\n",
        "3: routes[0].respond.json: a response has either `body` or `json`",
    );
    assert_message(
        "routes: [{ name: a, upstream: api, rewrite: { path: /a, add_prefix: /b } }]\n",
        "3: routes[0].rewrite.path: a rewrite has either `path`, or `strip_prefix` and `add_prefix`",
    );
    assert_message(
        "routes: [{ name: a, upstream: api }, { name: a, upstream: api, match: { prefix: /x } }]\n",
        "3: routes[1].name: the name `a` is taken",
    );
    assert_eq!(
        messages("listeners: [{ bind: 0.0.0.0:80 }, { name: b, bind: 0.0.0.0:80 }]\n"),
        ["1: listeners[1].bind[0]: 0.0.0.0:80 is already used by listener `0.0.0.0:80`"]
    );
    assert_eq!(
        messages("listeners: [{ name: a, bind: \"[::1]:0\" }, { name: b, bind: \"[::1]:0\" }]\n"),
        ["1: listeners[1].bind[0]: [::1]:0 is already used by listener `a`"]
    );
    assert_eq!(
        messages(
            "listeners: [{ bind: 0.0.0.0:80, redirect_https: true, tls: { certificates: [], alpn: [] } }]\n"
        ),
        [
            "1: listeners[0].redirect_https: a listener with TLS would redirect to itself",
            "1: listeners[0].tls.certificates: at least one certificate is needed",
            "1: listeners[0].tls.alpn: at least one protocol is needed",
        ]
    );
}

#[test]
fn instances_of_a_kind_are_told_apart_by_name() {
    loaded(&with(
        "plugins: [cors, { name: inner, cors: {} }]\nroutes: [{ upstream: api, plugins: [cors] }]\n",
    ));
}

#[test]
fn a_route_that_cannot_be_reached_is_refused() {
    assert_message(
        "routes:\n  - { match: { hosts: [a.com, b.com], path: \"/u/{id}\" }, upstream: api }\n  - { match: { hosts: [B.com, a.com], path: \"/u/{name}\" }, upstream: api }\n",
        "5: routes[1].match: never reached: route `route-0` has the same match",
    );
    loaded(&with(
        "routes:\n  - { match: { path: \"/u/{a}\" }, upstream: api }\n  - { match: { path: \"/u/{a**}\" }, upstream: api }\n",
    ));
}

#[test]
fn an_unused_upstream_is_only_a_warning() {
    let warnings = loaded(&with("")).warnings;
    assert!(!warnings.has_errors());
    assert!(warnings.render(false).starts_with("warning: upstreams.api: no route uses upstream `api`\n"));
    assert!(loaded(&with("plugins: [forward_auth]\n")).warnings.is_empty());
}

#[test]
fn secrets_of_the_environment_appear_in_no_message() {
    let rendered = errors(&with(
        "drain: ${TOKEN}\nlog: { level: \"${TOKEN}\" }\nroutes: [{ upstream: \"${TOKEN}\" }]\n",
    ))
    .render(true);
    assert!(rendered.contains("${TOKEN}") && !rendered.contains("s3cret"), "{rendered}");
    let rendered = errors(&with("routes: [{ upstream: \"${TOKEN}\" }]\n")).render(true);
    assert!(!rendered.contains("s3cret"), "{rendered}");
}

#[test]
fn side_files_have_options_and_a_table() {
    let path = Path::new("policies/10-x.yaml");
    let (_, side) = parse_side_file(path, "on_error: allow\nconfig: { limit: 3 }\n", &env).unwrap();
    assert_eq!(side.options.on_error, OnError::Allow);
    assert_eq!(side.config.read::<std::collections::BTreeMap<String, u8>>("config").unwrap()["limit"], 3);
    let (_, side) = parse_side_file(path, "# nothing yet\n", &env).unwrap();
    assert_eq!(side.config.to_json(), serde_json::json!({}));
    let errors = parse_side_file(path, "onerror: allow\n", &env).unwrap_err();
    assert!(errors.render(false).contains("^^^^^^^ did you mean `on_error`?"), "{errors}");
    assert!(
        parse_table(path, "[1]", &env)
            .unwrap_err()
            .render(false)
            .starts_with("error: expected a table, found a list\n")
    );
}

#[test]
fn files_that_cannot_be_read_say_why() {
    let dir = std::env::temp_dir().join(format!("portcullis-config-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = dir.join(name);
        std::fs::write(&path, bytes).unwrap();
        load(&path).unwrap_err().render(false)
    };
    let first = |rendered: String| rendered.lines().next().unwrap_or_default().to_owned();
    assert_eq!(first(load(&dir.join("none")).unwrap_err().render(false)), "error: there is no such file");
    assert_eq!(first(load(&dir).unwrap_err().render(false)), "error: this is a directory, not a file");
    assert_eq!(first(file("empty", b"")), "error: the file is empty");
    assert_eq!(first(file("comment", b"# later\n")), "error: the file is empty");
    assert_eq!(first(file("large", &vec![b'#'; 10 << 20])), "error: the file is larger than 8 MiB");
    let latin = file("latin", b"a: 1\nb: \xe4\n");
    assert!(latin.starts_with("error: not UTF-8 text\n") && latin.contains("latin:2:4"), "{latin}");
    assert_eq!(first(file("list", b"- a\n")), "error: expected a table, found a list");
    assert_eq!(first(file("zero", b"a: \0\n")), "error: not valid YAML: unexpected character: `\\u{0}'");
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn a_byte_order_mark_is_no_part_of_the_text() {
    let errors = errors("\u{feff}drian: 1s\nlisteners: [{ bind: 127.0.0.1:0 }]\n");
    assert_eq!(errors.0[0].span.unwrap().column, 1);
}

/// A part that cannot be read must be an error, never just missing.
fn assert_nothing_is_lost(Loaded { config, root, .. }: &Loaded) {
    let count = |key| root.child(key).map_or(0, |node| node.items().map_or(0, <[Node]>::len));
    assert_eq!(config.listeners.len(), count("listeners"));
    assert_eq!(config.plugins.len(), count("plugins"));
    assert_eq!(config.routes.len(), count("routes"));
}

#[test]
fn a_key_that_lost_its_content_is_not_taken_for_a_missing_one() {
    assert_eq!(
        messages("listeners:\n  - bind: 127.0.0.1:0\n    tls:\n"),
        ["3: missing key `certificates` in `tls`"]
    );
    let tls =
        "listeners: [{ bind: 127.0.0.1:0, tls: { certificates: [{ cert: a, key: b }], client_auth: } }]\n";
    assert_eq!(
        messages(tls),
        ["1: missing key `mode` in `client_auth`", "1: missing key `ca` in `client_auth`"]
    );
    assert_message(
        "routes: [{ match: { path: }, upstream: api }]\n",
        "3: routes[0].match.path: expected a path such as `/users/{id}`, found nothing",
    );
    assert_message("routes: [{ upstream: }]\n", "3: routes[0].upstream: expected a string, found nothing");
    assert_message(
        "routes: [{ upstream: ~ }]\n",
        "3: routes[0]: a route needs one of `upstream`, `redirect`, `respond`",
    );
    assert_message("policies:\n", "3: missing key `dir` in `policies`");
    loaded(&with("trusted_proxies:\nplugins:\nroutes:\nlog:\nadmin:\nstate_dir: ~\n"));
}

/// Whatever the bytes, an answer and no panic.
#[test]
fn damaged_files_never_panic() {
    for (at, _) in FULL.char_indices().step_by(3) {
        let (before, after) = FULL.split_at(at);
        for damaged in [
            before.to_owned(),
            format!("{before}{{{after}"),
            format!("{before}\t&*!{after}"),
            format!("{before}${{{after}"),
        ] {
            match parse(Path::new("x"), &damaged, &env) {
                Ok(loaded) => assert_nothing_is_lost(&loaded),
                Err(errors) => assert!(errors.render(true).contains("error")),
            }
        }
    }
}

#[test]
fn syntax_errors_come_with_advice() {
    for (text, help) in [
        ("a:\n\tb: 1\n", "indent with spaces instead of tabs"),
        ("a: b: c\n", "is a `]`, `}` or quote missing above? a text that holds `: ` must be quoted"),
        ("a: @x\n", "quote a text that begins with this character"),
    ] {
        assert_eq!(errors(text).0[0].help.as_deref(), Some(help), "{text}");
    }
}

#[test]
fn the_schema_accepts_what_the_reader_accepts() {
    let any = || schemars::json_schema!({ "type": "object" });
    let schema = crate::schema(&[("cors", any()), ("jwt", any()), ("request_id", any())]);
    let validator = jsonschema::validator_for(&schema).unwrap();
    let tree = |text: &str| yaml::parse(text, &env).unwrap().to_json();
    // The reader is lenient here: an unquoted version is a number to YAML.
    let full = tree(&FULL.replace("min_version: 1.3", "min_version: \"1.3\""));
    let complaints: Vec<_> = validator.iter_errors(&full).map(|error| error.to_string()).collect();
    assert!(complaints.is_empty(), "{complaints:#?}");
    for refused in [
        "listeners: [{ bnd: 0.0.0.0:80 }]\n",
        "drain: 10\n",
        "plugins: [nobody]\n",
        "plugins: [{ cors: {}, jwt: {} }]\n",
        "routes: [{ upstream: a, respond: {} }]\n",
        "routes: [{ upstream: a, nonsense: 1 }]\n",
        "upstreams: { api: {} }\n",
    ] {
        assert!(!validator.is_valid(&tree(refused)), "{refused}");
    }
}
