//! Hot reload: start, edit, see the change in the next answer. And what must not change with it.

use std::fs;
use std::os::unix::fs::symlink;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use portcullis_tests::tools::{Authority, attempt, guest, has};
use portcullis_tests::{Gateway, Http, Origin, Setup, nobody, request, until};
use serde_json::json;

const ONE_SCRIPT: &str =
    "plugins: [{ rhai: { file: answer.rhai } }]\nroutes: [{ respond: { status: 404 } }]\n";

fn saying(text: &str) -> String {
    format!("fn on_request(ctx) {{ return respond(200, \"{text}\"); }}\n")
}

fn one_script() -> Gateway {
    Setup::new(ONE_SCRIPT).file("answer.rhai", saying("first")).start()
}

#[test]
fn an_edited_script_changes_the_next_answer() {
    let gateway = one_script();
    assert_eq!(gateway.get("/").text(), "first");
    gateway.edit("answer.rhai", saying("second"));
    gateway.wait_generation(2);
    assert_eq!(gateway.get("/").text(), "second");
}

#[test]
fn a_connection_that_was_open_before_sees_the_change() {
    let gateway = one_script();
    let mut http = gateway.connect();
    assert_eq!(http.ask(&request("GET", "/")).unwrap().text(), "first");
    gateway.edit("answer.rhai", saying("second"));
    gateway.wait_generation(2);
    assert_eq!(http.ask(&request("GET", "/")).unwrap().text(), "second");
}

#[test]
fn a_broken_script_is_refused_with_its_place_and_the_old_one_serves() {
    let gateway = one_script();
    gateway.edit("answer.rhai", "fn on_request(ctx) {\n    let x = ;\n}\n");
    let why = gateway.wait_refused();
    assert!(why.contains("answer.rhai:2:13") && why.contains("let x = ;"), "{why}");
    assert_eq!(gateway.get("/").text(), "first");
    assert_eq!(gateway.generation(), 1);
    let status = gateway.status();
    assert!(status["drift"][0].as_str().unwrap().ends_with("answer.rhai"), "{status}");
    until("the refusal in the log", || gateway.log().contains("answer.rhai:2:13"));
    assert!(gateway.admin("GET", "/readyz").text().contains("answer.rhai:2:13"));
    assert_eq!(gateway.metric("portcullis_reload_refused", &[]), 1.0);

    gateway.edit("answer.rhai", saying("mended"));
    gateway.wait_status("the mended script", |status| status["last_error"].is_null());
    assert_eq!(gateway.get("/").text(), "mended");
}

#[test]
fn one_error_among_many_changes_holds_all_of_them_back() {
    let config = "plugins: [{ name: a, rhai: { file: a.rhai } }, { name: b, rhai: { file: b.rhai } }]\nroutes: [{ respond: { status: 204 } }]\n";
    let mark =
        |text: &str| format!("fn on_response(ctx) {{ ctx.response.headers[\"x-a\"] = \"{text}\"; }}\n");
    let gateway = Setup::new(config).file("a.rhai", mark("old")).file("b.rhai", "fn on_log(ctx) { }").start();
    gateway.edit("b.rhai", "fn on_log(ctx) {");
    gateway.wait_refused();
    gateway.edit("a.rhai", mark("new"));
    assert_eq!(gateway.admin("POST", "/reload").status, 422);
    assert_eq!(gateway.get("/").header("x-a"), Some("old"));
    gateway.edit("b.rhai", "fn on_log(ctx) { }");
    gateway.wait_status("both", |status| status["last_error"].is_null());
    assert_eq!(gateway.get("/").header("x-a"), Some("new"));
}

#[test]
fn a_policy_applies_by_being_dropped_in_and_goes_with_its_file() {
    let gateway = Setup::new("policies: { dir: policies }\nroutes: [{ respond: { status: 204 } }]\n")
        .directory("policies")
        .start();
    assert_eq!(gateway.get("/").status, 204);
    gateway.edit(
        "policies/10-deny.rhai",
        "fn on_request(ctx) { return deny(config.status ?? 403, \"test.denied\"); }",
    );
    gateway.wait_generation(2);
    assert_eq!(gateway.get("/").status, 403);
    gateway.edit("policies/10-deny.yaml", "config: { status: 418 }\n");
    gateway.wait_generation(3);
    assert_eq!(gateway.get("/").status, 418);
    fs::rename(gateway.dir().join("policies/10-deny.rhai"), gateway.dir().join("policies/20-other.rhai"))
        .unwrap();
    until("the renamed policy", || gateway.get("/").status == 403);
    gateway.remove("policies/20-other.rhai");
    until("the policy to be gone", || gateway.get("/").status == 204);
}

#[test]
fn a_module_applies_by_being_dropped_in() {
    let Some(module) = guest("block_path") else { return };
    let gateway = Setup::new("policies: { dir: policies }\nroutes: [{ respond: { status: 204 } }]\n")
        .file("policies/50-block.yaml", "config: { prefixes: [/internal] }\n")
        .start();
    assert_eq!(gateway.get("/internal/x").status, 204);
    gateway.edit("policies/50-block.wasm", module);
    gateway.wait_generation(2);
    assert_eq!((gateway.get("/internal/x").status, gateway.get("/public").status), (403, 204));
    gateway.edit("policies/50-block.wasm", b"\0asm rubbish");
    assert!(gateway.wait_refused().contains("50-block.wasm"), "{}", gateway.wait_refused());
    assert_eq!(gateway.get("/internal/x").status, 403);
}

#[test]
fn an_edited_configuration_applies_with_new_routes_and_listeners() {
    let config =
        "listeners: [{ name: main, bind: 127.0.0.1:0 }]\nroutes: [{ name: r, respond: { status: 204 } }]\n";
    let gateway = Setup::new(config).start();
    gateway.replace("gateway.yaml", "status: 204", "status: 205");
    gateway.wait_generation(2);
    assert_eq!(gateway.get("/").status, 205);
    let two = "[{ name: main, bind: 127.0.0.1:0 }, { name: more, bind: 127.0.0.2:0 }]";
    gateway.replace("gateway.yaml", "[{ name: main, bind: 127.0.0.1:0 }]", two);
    gateway.wait_generation(3);
    let more = gateway.listener("more");
    assert_eq!(Http::connect(more).unwrap().ask(&request("GET", "/")).unwrap().status, 205);
    assert_eq!(gateway.listener("main"), gateway.address());
    gateway.replace("gateway.yaml", two, "[{ name: main, bind: 127.0.0.1:0 }]");
    gateway.wait_generation(4);
    until("the listener to be closed", || Http::connect(more).is_err());
    assert_eq!(gateway.get("/").status, 205);
}

#[test]
fn a_listener_is_widened_and_narrowed_on_its_port() {
    let port = nobody().port();
    let (narrow, wide) = (format!("bind: 127.0.0.1:{port}"), format!("bind: 0.0.0.0:{port}"));
    let config =
        format!("listeners: [{{ name: main, {narrow} }}]\nroutes: [{{ respond: {{ status: 204 }} }}]\n");
    let gateway = Setup::new(&config).start();
    let ask = |host: [u8; 4]| Http::connect((host, port).into())?.ask(&request("GET", "/"));
    let serves = |host| ask(host).is_ok_and(|answer| answer.status == 204);
    let mut kept = gateway.connect();
    assert!(kept.ask(&request("GET", "/")).is_ok() && !serves([127, 0, 0, 2]));
    gateway.replace("gateway.yaml", &narrow, &wide);
    gateway.wait_generation(2);
    assert!(serves([127, 0, 0, 1]) && serves([127, 0, 0, 2]));
    // What came by the address that is gone ends.
    assert!(kept.is_closed());
    gateway.replace("gateway.yaml", &wide, &narrow);
    gateway.wait_generation(3);
    assert!(serves([127, 0, 0, 1]));
    until("the other addresses to be closed", || Http::connect(([127, 0, 0, 2], port).into()).is_err());
}

#[test]
fn a_port_that_is_taken_refuses_the_reload() {
    let holder = std::net::TcpListener::bind("127.0.0.3:0").unwrap();
    let taken = holder.local_addr().unwrap();
    let gateway = one_script();
    let listeners = format!("[{{ name: main, bind: 127.0.0.1:0 }}, {{ name: more, bind: {} }}]", taken);
    gateway.replace("gateway.yaml", "[{ name: main, bind: 127.0.0.1:0 }]", &listeners);
    assert!(gateway.wait_refused().contains(&taken.to_string()));
    assert_eq!(gateway.get("/").text(), "first");
}

#[test]
fn a_new_certificate_is_shown_to_the_next_client() {
    if !has(&["openssl"]) {
        return;
    }
    let config = "
listeners: [{ name: main, bind: 127.0.0.1:0, tls: { certificates: [{ cert: tls/live.pem, key: tls/live.key }] } }]
routes: [{ respond: { status: 204 } }]
";
    let setup = Setup::new(config);
    let authority = Authority::new(&setup.dir().join("tls"));
    let live = |dir: &std::path::Path, name: &str| {
        fs::copy(authority.file(&format!("{name}.key")), dir.join("tls/live.key")).unwrap();
        fs::copy(authority.file(&format!("{name}.pem")), dir.join("tls/live.pem")).unwrap();
    };
    ["old.test", "new.test"].iter().for_each(|name| authority.issue(name));
    live(setup.dir(), "old.test");
    let gateway = setup.start();
    let address = gateway.address().to_string();
    let shown = |name: &str| {
        attempt("openssl", &["s_client", "-connect", &address]).out.contains(&format!("CN = {name}"))
    };
    assert!(shown("old.test"));
    live(gateway.dir(), "new.test");
    // Between the two copies key and certificate do not fit: that is refused, and no harm done.
    until("the new certificate", || shown("new.test"));
}

#[test]
fn a_swapped_symlink_is_a_change() {
    // As a mounted ConfigMap does it: files are links through `..data`, which is swapped as a whole.
    let setup = Setup::new("policies: { dir: mounted }\nroutes: [{ respond: { status: 204 } }]\n")
        .file("mounted/..one/10-answer.rhai", saying("one"))
        .file("mounted/..two/10-answer.rhai", saying("two"));
    let mounted = setup.dir().join("mounted");
    symlink("..one", mounted.join("..data")).unwrap();
    symlink("..data/10-answer.rhai", mounted.join("10-answer.rhai")).unwrap();
    let gateway = setup.start();
    assert_eq!(gateway.get("/").text(), "one");
    symlink("..two", mounted.join("..new")).unwrap();
    fs::rename(mounted.join("..new"), mounted.join("..data")).unwrap();
    gateway.wait_generation(2);
    assert_eq!(gateway.get("/").text(), "two");
}

#[test]
fn a_signal_and_the_admin_interface_reload_too() {
    let gateway = one_script();
    let unchanged = gateway.admin("POST", "/reload");
    assert_eq!((unchanged.status, unchanged.json()["outcome"].clone()), (200, json!("unchanged")));
    gateway.signal("HUP");
    gateway.wait_status("the signal to be seen", |status| status["reloads"]["unchanged"] == 2);
    gateway.edit("answer.rhai", saying("second"));
    gateway.signal("HUP");
    gateway.wait_generation(2);
    assert_eq!(gateway.get("/").text(), "second");
}

#[test]
fn a_request_under_way_ends_with_what_it_began() {
    let origin = Origin::start();
    let mark =
        |text: &str| format!("fn on_response(ctx) {{ ctx.response.headers[\"x-a\"] = \"{text}\"; }}\n");
    let gateway = Setup::new("plugins: [{ rhai: { file: a.rhai } }]\n")
        .file("a.rhai", mark("old"))
        .before(&origin)
        .start();
    let mut http = gateway.connect();
    http.write(b"GET /hold HTTP/1.1\r\nhost: g\r\n\r\n").unwrap();
    until("the request to be held", || origin.held() == 1);
    gateway.edit("a.rhai", mark("new"));
    gateway.wait_generation(2);
    assert_eq!(gateway.get("/").header("x-a"), Some("new"));
    origin.release();
    assert_eq!(http.answer("GET").unwrap().header("x-a"), Some("old"));
}

#[test]
fn upstream_connections_are_kept_over_a_reload() {
    let origin = Origin::start();
    let gateway = Setup::new("plugins: [{ rhai: { file: a.rhai } }]\n")
        .file("a.rhai", "fn on_log(ctx) { }")
        .before(&origin)
        .start();
    let mut http = gateway.connect();
    for turn in 0..5 {
        assert_eq!(http.ask(&request("GET", "/")).unwrap().status, 200);
        gateway.edit("a.rhai", format!("fn on_log(ctx) {{ {turn} }}"));
        assert_eq!(gateway.admin("POST", "/reload").status, 200);
    }
    assert_eq!(gateway.metric("portcullis_upstream_connects_total", &[]), 1.0);
}

/// Reloads in the storm, after those that warm up.
const RELOADS: usize = 300;
const WARM_UP: usize = 100;

/// What the gateway may have grown by from the warm-up to the end, in KiB: a leak of 20 KiB a reload, which is
/// less than any generation takes, would be more.
const GROWTH: u64 = 6 << 10;

#[test]
fn no_request_is_lost_in_a_storm_of_reloads_and_memory_stays_flat() {
    let origin = Origin::start();
    let config = "
workers: 2
plugins: [{ rhai: { file: mark.rhai } }, policies]
policies: { dir: policies }
";
    let mark = |n: usize| format!("fn on_response(ctx) {{ ctx.response.headers[\"x-mark\"] = \"{n}\"; }}\n");
    let gateway = Setup::new(config).file("mark.rhai", mark(0)).directory("policies").before(&origin).start();
    let (done, asked) = (AtomicBool::new(false), AtomicUsize::new(0));
    let ask_on = |kept: bool| {
        let mut http = gateway.connect();
        while !done.load(Ordering::SeqCst) {
            if !kept {
                http = gateway.connect();
            }
            let answer = http.ask(&request("POST", "/x").body("hello")).expect("a request was lost");
            assert!(answer.status == 200 && answer.header("x-mark").is_some(), "{answer:?}");
            assert_eq!(answer.json()["body"], "hello");
            asked.fetch_add(1, Ordering::SeqCst);
        }
    };
    // Whatever ends the storm ends the clients too, a failure included.
    struct Over<'a>(&'a AtomicBool);
    impl Drop for Over<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }
    let mut warm = 0;
    let began = Instant::now();
    std::thread::scope(|threads| {
        let _over = Over(&done);
        threads.spawn(|| ask_on(true));
        threads.spawn(|| ask_on(true));
        threads.spawn(|| ask_on(false));
        for turn in 1..=WARM_UP + RELOADS {
            let (file, content, expected) = match turn % 4 {
                0 => ("mark.rhai", "fn on_response(ctx) {".to_owned(), 422),
                1 => ("policies/10-more.rhai", format!("fn on_log(ctx) {{ {turn} }}"), 200),
                2 => (
                    "gateway.yaml",
                    fs::read_to_string(gateway.dir().join("gateway.yaml")).unwrap() + "# more\n",
                    200,
                ),
                _ => ("mark.rhai", mark(turn), 200),
            };
            let before = asked.load(Ordering::SeqCst);
            gateway.edit(file, content);
            assert_eq!(gateway.admin("POST", "/reload").status, expected, "turn {turn}");
            if expected == 422 {
                gateway.edit(file, mark(turn));
            }
            // Requests keep pace, so that every reload meets some.
            until("requests to go on", || asked.load(Ordering::SeqCst) > before + 5);
            if turn == WARM_UP {
                warm = gateway.memory();
            }
        }
    });
    let (grown, asked) = (gateway.memory().saturating_sub(warm), asked.into_inner());
    assert!(asked > 2000, "only {asked} requests");
    assert_eq!(origin.served(), asked, "each request was answered once");
    assert!(
        grown < GROWTH,
        "{grown} KiB more after {RELOADS} reloads, {asked} requests in {:?}",
        began.elapsed()
    );
    let reloads = gateway.status()["reloads"].clone();
    assert!(reloads["applied"].as_u64() > Some(290) && reloads["refused"].as_u64() >= Some(100), "{reloads}");
}

#[test]
fn memory_stays_flat_while_a_module_is_loaded_again_and_again() {
    let Some(module) = guest("block_path") else { return };
    let gateway = Setup::new("policies: { dir: policies }\nroutes: [{ respond: { status: 204 } }]\n")
        .file("policies/50-block.wasm", module)
        .file("policies/50-block.yaml", "config: { prefixes: [/0] }\n")
        .start();
    let mut warm = 0;
    for turn in 1..=120 {
        gateway.edit("policies/50-block.yaml", format!("config: {{ prefixes: [/{turn}] }}\n"));
        assert_eq!(gateway.admin("POST", "/reload").status, 200);
        assert_eq!(gateway.get(&format!("/{turn}")).status, 403);
        if turn == 60 {
            warm = gateway.memory();
        }
    }
    let grown = gateway.memory().saturating_sub(warm);
    // The module's own code is more than a tenth of this: a leak of one in five would show.
    assert!(grown < 2 << 10, "{grown} KiB more after 60 reloads");
}
