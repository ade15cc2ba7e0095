use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use http::StatusCode;
use portcullis_proxy::chain::OnError;
use portcullis_proxy::upstream::{Adaptive, Breaker, Ejection, Hedge, Pending, Retries, Timeouts, Upstream};

use super::Built;
use crate::testing::{Site, builds, names, services};

const ROUTE: &str = "routes: [{ name: all, respond: { status: 204 } }]\n";

fn chain_names(built: &Built, route: usize) -> Vec<String> {
    let chain = &built.generation.listeners[0].route_chains[route];
    chain.instances().iter().map(|instance| instance.name.to_string()).collect()
}

#[test]
fn a_chain_is_the_gateways_list_with_the_policies_then_the_listeners_then_the_routes() {
    let site = Site::new(
        "\
plugins: [stamp, policies, { name: last, stamp: {} }]
policies: { dir: policies }
routes:
  - { name: all, plugins: [stamp], respond: {} }
  - { name: bare, match: { prefix: /bare }, respond: {} }
",
    );
    site.write("policies/20-second.script", "");
    site.write("policies/10-first.script", "");
    let built = site.build(&services(), None).unwrap();
    assert_eq!(chain_names(&built, 0), ["stamp", "first", "second", "last", "all/stamp"]);
    assert_eq!(chain_names(&built, 1), ["stamp", "first", "second", "last"]);
    assert_eq!(built.generation.number, 1);
}

#[test]
fn policies_come_last_unless_placed() {
    let site = Site::new(&format!("plugins: [stamp]\npolicies: {{ dir: policies }}\n{ROUTE}"));
    site.write("policies/10-geo.script", "");
    assert_eq!(names(&site.build(&services(), None).unwrap()), ["stamp", "geo"]);
}

#[test]
fn every_error_is_found_at_once() {
    let site = Site::new(
        "\
plugins:
  - stmap
  - stamp: { colour: red }
  - { name: b, stamp: { refuse: not like this } }
  - { name: c, stamp: { panic: true } }
  - { name: d, script: { file: missing.script } }
  - { name: e, stamp: { upstream: nope } }
routes:
  - { name: all, match: { path: '/a/{id}' }, redirect: { to: '/{nope}' } }
",
    );
    let errors = site.build(&services(), None).err().unwrap();
    for expected in [
        "there is no plugin `stmap`\n --> portcullis.yaml:4:5\n",
        "did you mean `stamp`?",
        "unknown key `colour` in `stamp`\n --> portcullis.yaml:5:14\n",
        "plugins[2].stamp.refuse: not like this\n --> portcullis.yaml:6:33\n",
        "^ say nothing",
        "panicked while it was built: told to",
        "plugins[4].script.file: `missing.script` does not exist",
        "no upstream is named `nope`",
        "routes[0].redirect.to: `{nope}` is neither a capture",
    ] {
        assert!(errors.contains(expected), "{expected}\n\n{errors}");
    }
}

#[test]
fn errors_hide_no_errors_of_the_same_table_or_route() {
    let site = Site::new(
        "\
plugins:
  - stamp: { colour: red, remark: perhaps, refuse: [] }
  - { name: b, tiemout: 1s, stamp: { colour: blue } }
routes:
  - { match: { path: '/a/{id}', methods: [get] }, rewrite: { path: '/b/{ie}', host: [] }, upstream: nope }
  - { match: { hosts: [a b] }, redirect: { to: '/{id}', status: 200 } }
  - { match: { path: /a/../b }, respond: { statsu: 200, headers: { x-a: \"a\\nb\" } } }
  - { match: { paht: '/a/{id}' }, redirect: { to: '/{id}' } }
",
    );
    let errors = site.build(&services(), None).err().unwrap();
    let messages: Vec<_> = errors.lines().filter_map(|line| line.strip_prefix("error: ")).collect();
    assert_eq!(
        messages,
        [
            "unknown key `colour` in `stamp`",
            "plugins[0].stamp.remark: expected `true` or `false`, found string `perhaps`",
            "plugins[0].stamp.refuse: expected a string, found a list",
            "unknown key `tiemout` in `plugins[1]`",
            "unknown key `colour` in `stamp`",
            "routes[0].match.methods[0]: methods are uppercase: `GET`",
            "routes[0].rewrite.path: `{ie}` is neither a capture of the path nor path, query or host",
            "routes[0].rewrite.host: expected a string, found a list",
            "routes[0].upstream: there is no upstream `nope`",
            "routes[1].match.hosts[0]: expected a host name such as `api.example.com` or `*.example.com`, found string `a b`",
            "routes[1].redirect.to: `{id}` is neither a capture of the path nor path, query or host",
            "routes[1].redirect.status: 200 is no redirect: use 301, 302, 303, 307 or 308",
            "routes[2].match.path: the path must be written `/b`",
            "unknown key `statsu` in `respond`",
            "routes[2].respond.headers.x-a: this cannot be sent as a header",
            "unknown key `paht` in `match`",
        ],
        "{errors}"
    );
}

#[test]
fn errors_in_a_table_let_no_part_of_it_be_built() {
    let services = services();
    let site = Site::new(&format!("plugins: [{{ stamp: {{ colour: red, color: red }} }}]\n{ROUTE}"));
    assert!(site.build(&services, None).is_err());
    assert_eq!(builds(&services, "stamp", "stamp"), 0);
}

#[test]
fn errors_of_options_hide_no_errors_of_the_policy() {
    let site = Site::new(&format!("policies: {{ dir: policies }}\n{ROUTE}"));
    site.write("policies/10-a.script", "");
    site.write("policies/10-a.yaml", "on_error: maybe\ntimeout: 5\nfoo: 1\n");
    let errors = site.build(&services(), None).err().unwrap();
    for expected in ["on_error: unknown value `maybe`", "timeout: expected a duration", "unknown key `foo`"] {
        assert!(errors.contains(expected), "{expected}\n\n{errors}");
    }
}

#[test]
fn a_bad_certificate_hides_no_bad_authority_and_no_other_certificate() {
    let site = Site::new(ROUTE);
    site.write("bad.pem", "no PEM");
    let tls = "tls: { certificates: [{ cert: bad.pem, key: none.pem }, { cert: bad.pem, key: bad.pem }], \
               client_auth: { mode: required, ca: bad.pem } }";
    site.write("portcullis.yaml", &format!("listeners: [{{ bind: 127.0.0.1:0, {tls} }}]\n{ROUTE}"));
    let errors = site.build(&services(), None).err().unwrap();
    for expected in [
        "certificates[0].key: `none.pem` does not exist",
        "certificates[1].cert: holds no",
        "client_auth.ca: holds no",
    ] {
        assert!(errors.contains(expected), "{expected}\n\n{errors}");
    }
}

#[test]
fn an_error_in_a_script_points_into_the_script() {
    let site = Site::new(&format!("plugins: [{{ script: {{ file: a.script }} }}]\n{ROUTE}"));
    site.write("a.script", "fine\nnot !fine\n");
    let errors = site.build(&services(), None).err().unwrap();
    assert_eq!(errors, "error: unexpected `!`\n --> a.script:2:5\n  |\n2 | not !fine\n  |     ^\n");
}

#[test]
fn a_remark_is_a_warning_where_it_belongs() {
    let site = Site::new(&format!("plugins: [{{ stamp: {{ remark: true }} }}]\n{ROUTE}"));
    let services = services();
    let first = site.build(&services, None).unwrap();
    let rendered = site.relative(&first.warnings.render(false));
    assert!(
        rendered.starts_with("warning: plugins[0].stamp.remark: odd\n --> portcullis.yaml:3:"),
        "{rendered}"
    );
    let notice = "warning: plugins[0].stamp.remark: odd at first";
    assert!(rendered.contains(notice), "{rendered}");
    // It holds as long as the instance does, unlike what only came of building it.
    let second = site.build(&services, Some(&first)).unwrap();
    assert_eq!(second.warnings.0, [first.warnings.0[0].clone()]);
}

#[test]
fn names_are_unique_over_all_lists() {
    let site = Site::new(&format!("plugins: [stamp]\npolicies: {{ dir: policies }}\n{ROUTE}"));
    site.write("policies/10-stamp.script", "");
    let errors = site.build(&services(), None).err().unwrap();
    assert!(errors.contains("the name `stamp` is that of a `stamp`"), "{errors}");
    assert!(errors.contains("policies/10-stamp.script") && errors.contains("rename the file"), "{errors}");
}

#[test]
fn a_route_cannot_judge_connections() {
    let site = Site::new("routes: [{ plugins: [{ stamp: { connections: true } }], respond: {} }]\n");
    assert!(site.build(&services(), None).err().unwrap().contains("judges connections"));
}

#[test]
fn what_is_unchanged_is_not_built_again() {
    let services = services();
    let config = |value: &str| {
        format!(
            "\
plugins:
  - {{ name: plain, stamp: {{}} }}
  - {{ name: listed, stamp: {{ list: list.txt }} }}
  - {{ name: edited, stamp: {{ remark: {value} }} }}
{ROUTE}"
        )
    };
    let site = Site::new(&config("false"));
    site.write("list.txt", "one");
    let first = site.build(&services, None).unwrap();

    let same = site.build(&services, Some(&first)).unwrap();
    assert_eq!(builds(&services, "stamp", ""), 3);
    assert_eq!((first.inputs.digest(), same.generation.number), (same.inputs.digest(), 2));

    site.write("list.txt", "two");
    let list = site.build(&services, Some(&same)).unwrap();
    assert_eq!(builds(&services, "stamp", "listed"), 2);

    site.configure(&config("true"));
    let edited = site.build(&services, Some(&list)).unwrap();
    let counts = ["plain", "listed", "edited"].map(|name| builds(&services, "stamp", name));
    assert_eq!(counts, [1, 2, 2]);
    assert_eq!(list.plugins[0].instance.version, edited.plugins[0].instance.version);
    assert_ne!(same.plugins[1].instance.version, list.plugins[1].instance.version);
}

#[test]
fn a_change_of_position_or_options_builds_no_plugin() {
    let services = services();
    let site = Site::new(&format!("plugins: [stamp, {{ name: b, stamp: {{}} }}]\n{ROUTE}"));
    let first = site.build(&services, None).unwrap();
    site.configure(&format!("\n\nplugins: [{{ name: b, on_error: allow, stamp: {{}} }}, stamp]\n{ROUTE}"));
    let second = site.build(&services, Some(&first)).unwrap();
    assert_eq!(builds(&services, "stamp", ""), 2);
    assert_eq!(names(&second), ["b", "stamp"]);
    assert_eq!(second.plugins[0].instance.on_error, OnError::Allow);
    assert!(std::sync::Arc::ptr_eq(&second.plugins[1].instance, &first.plugins[0].instance));
}

#[test]
fn a_plugin_is_built_again_with_the_upstream_it_calls() {
    let services = services();
    let config = |retries| {
        format!(
            "\
plugins: [{{ name: caller, stamp: {{ upstream: api }} }}, stamp]
upstreams: {{ api: {{ endpoints: ['http://127.0.0.1:9000'], retries: {retries} }} }}
routes: [{{ upstream: api }}]
"
        )
    };
    let site = Site::new(&config(1));
    let first = site.build(&services, None).unwrap();
    let same = site.build(&services, Some(&first)).unwrap();
    assert_eq!(builds(&services, "stamp", ""), 2);
    site.configure(&config(2));
    site.build(&services, Some(&same)).unwrap();
    assert_eq!(["caller", "stamp"].map(|name| builds(&services, "stamp", name)), [2, 1]);
}

#[test]
fn an_endpoint_keeps_its_identity_while_its_address_stays() {
    let services = services();
    let config = |endpoints: &str| {
        format!("upstreams: {{ api: {{ endpoints: [{endpoints}] }} }}\nroutes: [{{ upstream: api }}]\n")
    };
    let site = Site::new(&config("'http://127.0.0.1:9000', 'http://[::1]:9001'"));
    let first = site.build(&services, None).unwrap();
    site.configure(&config("'http://[::1]:9001', { url: 'http://127.0.0.1:9002', weight: 2 }"));
    let second = site.build(&services, Some(&first)).unwrap();
    let (old, new) = (&first.upstreams[0].upstream, &second.upstreams[0].upstream);
    assert_eq!((&*new.endpoints[0].authority, new.endpoints[0].id), ("[::1]:9001", old.endpoints[1].id));
    assert!(old.endpoints.iter().all(|endpoint| endpoint.id != new.endpoints[1].id));
    assert_eq!(new.endpoints.len(), 2);
}

#[test]
fn every_number_of_an_upstream_becomes_what_it_says() {
    let site = Site::new(&format!(
        "\
upstreams:
  api:
    endpoints: [{{ url: 'http://127.0.0.1:1', weight: 3, priority: 4 }}]
    min_healthy: 11%
    slow_start: 12s
    eject: {{ failures: 13, server_errors: true, error_rate: 14%, latency_factor: 15, window: 16s, min_requests: 17,
      time: 18s, max_time: 19m, max_ejected: 20% }}
    breaker: {{ error_rate: 21%, min_requests: 22, window: 23s, server_errors: false, time: 24s, probes: 25 }}
    max_requests: 26
    adaptive: {{ min: 27, tolerance: 28 }}
    max_pending: 29
    timeouts: {{ connect: 30s, response: 31s, total: 32s, pending: 33s, idle: 34s, body: 35s, tunnel: 36s }}
    max_idle: 37
    max_connection_age: 38s
    tcp_keepalive: 39s
    retries: {{ attempts: 40, per_try_timeout: 41s, timeout: 42s, backoff: 43ms, on: [503],
      budget: {{ share: 44%, min: 45 }} }}
    hedge: {{ after: 46ms }}
    health: {{ port: 47, interval: 48s, timeout: 49s, healthy: 50, unhealthy: 51 }}
{ROUTE}"
    ));
    let built = site.build(&services(), None).unwrap();
    let s = Duration::from_secs;
    // What is new in an upstream has to be looked at here, too.
    let Upstream {
        name: _,
        endpoints: _,
        protocol: _,
        balancer,
        slow_start,
        ejection,
        breaker,
        max_requests,
        adaptive,
        pending,
        timeouts,
        max_idle,
        max_age,
        keepalive,
        retries,
        hedge,
        deadline: _,
        host: _,
        metrics: _,
        successor: _,
    } = &*built.upstreams[0].upstream;
    let balancer = format!("{balancer:?}");
    for expected in ["min_healthy: 11,", "weight: 3,", "priority: 8 }"] {
        assert!(balancer.contains(expected), "{expected} in {balancer}");
    }
    let expected = Ejection {
        failures: 13,
        server_errors: true,
        error_rate: Some(14),
        latency_factor: Some(15),
        window: s(16),
        min_requests: 17,
        time: s(18),
        max_time: s(19 * 60),
        max_ejected: 20,
    };
    assert_eq!(format!("{ejection:?}"), format!("{expected:?}"));
    let expected = Breaker {
        error_rate: 21,
        min_requests: 22,
        window: s(23),
        server_errors: false,
        time: s(24),
        probes: 25,
    };
    assert_eq!(*breaker, Some(expected));
    assert_eq!(*adaptive, Some(Adaptive { min: 27, tolerance: 28 }));
    assert_eq!(*pending, Pending { most: 29, timeout: s(33) });
    let expected = Timeouts {
        connect: s(30),
        response: s(31),
        total: Some(s(32)),
        idle: s(34),
        body: s(35),
        tunnel: s(36),
    };
    assert_eq!(*timeouts, expected);
    assert_eq!((*slow_start, *max_requests, *max_idle), (s(12), Some(26), 37));
    assert_eq!((*max_age, *keepalive), (Some(s(38)), Some(s(39))));
    let expected = Retries {
        attempts: 40,
        per_try: Some(s(41)),
        total: Some(s(42)),
        backoff: Duration::from_millis(43),
        on_connect: false,
        on_timeout: false,
        on_broken: false,
        on_status: vec![StatusCode::SERVICE_UNAVAILABLE],
        share: 44,
        min: 45,
    };
    assert_eq!(format!("{retries:?}"), format!("{expected:?}"));
    assert!(matches!(hedge, Some(Hedge::After(after)) if *after == Duration::from_millis(46)));
    // Checks are made by what the configuration says.
    let health = built.upstreams[0].config.health.as_ref().unwrap();
    assert_eq!(
        (health.port.map(Into::into), health.interval.0, health.timeout.0),
        (Some(47_u16), s(48), s(49))
    );
    assert_eq!((health.healthy.get(), health.unhealthy.get()), (50, 51));
}

#[test]
fn a_policy_has_its_options_beside_it() {
    let site = Site::new(&format!("policies: {{ dir: policies }}\n{ROUTE}"));
    site.write("policies/10-hello.script", "hello");
    site.write("policies/10-hello.yaml", "on_error: allow\ntimeout: 2s\nprefix: ${GIVEN}\n");
    let built = site.build(&services(), None).unwrap();
    let instance = &built.plugins[0].instance;
    assert_eq!((&*instance.name, instance.kind, instance.on_error), ("hello", "script", OnError::Allow));
    assert_eq!(instance.timeout.as_secs(), 2);
    assert_eq!(built.plugins[0].file(), Some(&site.path("policies/10-hello.script")));

    site.write("policies/10-hello.yaml", "on_error: allow\nperfix: a\n");
    let errors = site.build(&services(), None).err().unwrap();
    assert!(errors.contains("unknown key `perfix`\n --> policies/10-hello.yaml:2:1\n"), "{errors}");
    site.write("policies/10-hello.yaml", "timeout: soon\nfile: other\n");
    let errors = site.build(&services(), None).err().unwrap();
    assert!(
        errors.contains("the file is the one of the same name\n --> policies/10-hello.yaml:2:1\n"),
        "{errors}"
    );
}

#[test]
fn files_that_do_nothing_are_mentioned_and_temporary_ones_ignored() {
    let site = Site::new(&format!("policies: {{ dir: policies }}\n{ROUTE}"));
    for file in ["10-a.script~", ".10-b.script.swp", "10-c.yaml", "20-d.lua"] {
        fs::create_dir_all(site.path("policies")).unwrap();
        fs::write(site.path("policies").join(file), "").unwrap();
    }
    let built = site.build(&services(), None).unwrap();
    assert!(built.plugins.is_empty());
    assert_eq!(
        site.relative(&built.warnings.render(false)),
        "\
warning: there is no policy to these options
  --> policies/10-c.yaml
  = put `10-c` with ending `.script` beside it

warning: this is no policy
  --> policies/20-d.lua
  = policies end in `.script`
"
    );
}

#[test]
fn a_policy_directory_that_cannot_be_listed_is_an_error() {
    let site = Site::new(&format!("policies: {{ dir: policies }}\n{ROUTE}"));
    let refused = |message: &str| {
        let errors = site.build(&services(), None).err().unwrap();
        assert!(errors.starts_with(&format!("error: policies.dir: {message}")), "{errors}");
        assert!(errors.contains("or remove `policies`"), "{errors}");
    };
    fs::remove_dir(site.path("policies")).unwrap();
    refused("`policies` does not exist");
    site.write("policies", "a file");
    refused("cannot list `policies`");
}

#[test]
fn policies_that_everybody_could_replace_are_refused() {
    let site = Site::new(&format!("policies: {{ dir: policies }}\n{ROUTE}"));
    site.write("policies/10-a.script", "");
    let mode = |path: &str, mode| {
        fs::set_permissions(site.path(path), fs::Permissions::from_mode(mode)).unwrap();
    };
    mode("policies/10-a.script", 0o646);
    assert!(site.build(&services(), None).err().unwrap().contains("can be written by everybody"));
    mode("policies/10-a.script", 0o644);
    mode("policies", 0o777);
    assert!(site.build(&services(), None).err().unwrap().contains("everybody can put policies"));
}

#[test]
fn errors_in_the_file_hide_none_of_what_it_names() {
    let site = Site::new(
        "\
drain: soon
plugins: [stmap, { stamp: { refuse: 'no' }, timeout: 5 }, { name: c, stamp: { upstream: api } }, { name: c, stamp: {} }]
policies: { dir: policies }
upstreams: { api: { endpoints: [nowhere] } }
routes:
  - { match: { path: a }, plugins: [{ stamp: { colour: red } }], redirect: { to: '/{id}' } }
  - { match: { path: '/b/{id}' }, redirect: { to: '/{nope}' } }
  - { upstream: api }
  - { upstream: api }
",
    );
    site.write("policies/10-a.script", "!");
    let errors = site.build(&services(), None).err().unwrap();
    let found: Vec<_> = errors.lines().filter(|line| line.starts_with("error")).collect();
    let expected = [
        "drain: expected a duration",
        "there is no plugin `stmap`",
        "plugins[1].stamp.refuse: no",
        "plugins[1].timeout: expected a duration",
        "plugins[3]: a second `stamp` named `c`",
        "upstreams.api.endpoints[0]: expected an address",
        "routes[0].match.path: a path begins with `/`",
        "unknown key `colour` in `stamp`",
        "routes[1].redirect.to: `{nope}` is neither a capture",
        "routes[3].match: never reached",
        "unexpected `!`",
    ];
    for expected in expected {
        assert!(found.iter().any(|line| line.contains(expected)), "{expected}\n\n{errors}");
    }
    assert_eq!(found.len(), expected.len(), "{errors}");
}

#[test]
fn tls_errors_point_at_the_setting() {
    let site = Site::new("");
    site.write(
        "portcullis.yaml",
        &format!(
            "\
listeners:
  - name: web
    bind: 127.0.0.1:0
    tls:
      certificates: [{{ cert: a.pem, key: a.key }}, {{ cert: b.pem, key: b.key }}]
{ROUTE}"
        ),
    );
    site.write("a.pem", "not a certificate");
    site.write("a.key", "");
    site.write("b.pem", "");
    let errors = site.build(&services(), None).err().unwrap();
    assert!(errors.contains("listeners[0].tls.certificates[1].key: `b.key` does not exist"), "{errors}");
    assert!(errors.contains("listeners[0].tls.certificates[0].cert: "), "{errors}");
    site.write("b.key", "");
    let errors = site.build(&services(), None).err().unwrap();
    for index in [0, 1] {
        assert!(errors.contains(&format!("listeners[0].tls.certificates[{index}].cert: ")), "{errors}");
    }
}

#[test]
fn routes_become_what_they_say() {
    let site = Site::new(
        "\
upstreams: { api: { endpoints: ['http://127.0.0.1:9000'], host: endpoint } }
routes:
  - { name: rest, match: { path: '/files/{path**}' }, rewrite: { path: '/v2/{path**}' }, upstream: api }
  - { name: json, match: { hosts: [a.example] }, respond: { json: { a: 1 } } }
  - { name: moved, match: { prefix: /old }, redirect: { to: '/new{query}', status: 301 } }
",
    );
    let built = site.build(&services(), None).unwrap();
    let routes: Vec<_> = built.generation.routes.iter().map(|route| &*route.meta.name).collect();
    assert_eq!(routes, ["rest", "json", "moved"]);
    match &built.generation.routes[1].action {
        portcullis_proxy::generation::Action::Respond { headers, body, .. } => {
            assert_eq!(
                (headers["content-type"].as_bytes(), &body[..]),
                (&b"application/json"[..], &b"{\"a\":1}"[..])
            );
        }
        _ => panic!("not an answer"),
    }
}
