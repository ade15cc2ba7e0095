//! Listeners in the file system: who may connect, who they are, and what becomes of the file.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use portcullis_tests::tools::{Authority, has, tool};
use portcullis_tests::{Gateway, Origin, PATIENCE, Setup, program, until};

const LOG: &str = "{ access_log: { target: access.log } }";

/// A gateway with a listener at `web.sock` beside its configuration, with these settings.
fn setup(listener: &str, more: &str) -> Setup {
    let setup = Setup::new(&format!(
        "plugins: [{LOG}]\nlisteners: [{{ name: main, bind: 127.0.0.1:0 }}, {{ name: web, bind: \"unix:${{DIR}}/web.sock\", {listener} }}]\n{more}\n"
    ));
    let dir = setup.dir().display().to_string();
    setup.variable("DIR", dir)
}

fn socket(gateway: &Gateway) -> PathBuf {
    gateway.dir().join("web.sock")
}

/// Sends this and what follows to a socket; returns everything that comes back.
fn say(path: &Path, before: &[u8], headers: &str) -> std::io::Result<String> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let request = format!("GET /said HTTP/1.1\r\nhost: g\r\nconnection: close\r\n{headers}\r\n");
    stream.write_all(&[before, request.as_bytes()].concat())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

fn get(gateway: &Gateway) -> String {
    say(&socket(gateway), b"", "").unwrap()
}

fn is_good(answer: &str) -> bool {
    answer.starts_with("HTTP/1.1 200 ")
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn a_listener_at_a_path_serves_clients_without_an_address() {
    let origin = Origin::start();
    let gateway = setup("socket_mode: 0660", "workers: 2").before(&origin).start();
    assert_eq!(mode(&socket(&gateway)), 0o660);
    for _ in 0..20 {
        let answer = get(&gateway);
        assert!(is_good(&answer), "{answer}");
        assert!(answer.contains("\"x-forwarded-for\":\"unknown\""), "{answer}");
        assert!(answer.contains("\"forwarded\":\"for=unknown;proto=http\""), "{answer}");
    }
    let line = gateway.logged_path("/said");
    assert_eq!((&line["client"], &line["peer"]), (&"0.0.0.0".into(), &"0.0.0.0:0".into()));
    // Nobody is believed who is not to be.
    let answer = say(&socket(&gateway), b"", "x-forwarded-for: 10.0.0.1\r\n").unwrap();
    assert!(answer.contains("\"x-forwarded-for\":\"unknown\""), "{answer}");
    let status = gateway.status();
    let at = &status["listeners"][1]["addresses"][0];
    assert_eq!(at["actual"], format!("unix:{}", socket(&gateway).display()));
    let path = socket(&gateway);
    let _dir = gateway.stop();
    assert!(!path.exists(), "it ends with the process");
}

#[test]
fn http2_and_tls_are_spoken_over_it() {
    if !has(&["curl", "openssl"]) {
        return;
    }
    let plain = setup("", "routes: [{ respond: { status: 204 } }]").start();
    let status = ["-s", "-o", "/dev/null", "-w", "%{http_code} %{http_version}"];
    let ask = |gateway: &Gateway, more: &[&str]| {
        let path = socket(gateway).display().to_string();
        tool("curl", &[&status[..], &["--unix-socket", &path], more].concat())
    };
    assert_eq!(ask(&plain, &["--http2-prior-knowledge", "http://g/"]), "204 2");
    let tls = "tls: { certificates: [{ cert: tls/one.test.pem, key: tls/one.test.key }] }";
    let setup = setup(tls, "routes: [{ respond: { status: 204 } }]");
    let authority = Authority::new(&setup.dir().join("tls"));
    authority.issue("one.test");
    let secure = setup.start();
    assert_eq!(ask(&secure, &["--cacert", &authority.ca(), "https://one.test/"]), "204 2");
    assert_eq!(ask(&secure, &["--http1.1", "--cacert", &authority.ca(), "https://one.test/"]), "204 1.1");
}

#[test]
fn only_the_gateways_own_user_may_connect_unless_others_are_let() {
    let gateway = setup("limits: {}", "routes: [{ respond: { status: 200 } }]").start();
    assert_eq!(mode(&socket(&gateway)), 0o600);
    gateway.replace("gateway.yaml", "limits: {}", "socket_mode: 0666");
    gateway.wait_generation(2);
    assert_eq!(mode(&socket(&gateway)), 0o666);
    assert!(is_good(&get(&gateway)));
}

#[test]
fn a_file_that_a_dead_process_left_is_replaced_and_a_live_one_is_not() {
    let answering = "routes: [{ respond: { status: 200 } }]";
    let gateway = setup("", answering).start();
    let path = socket(&gateway);
    gateway.signal("KILL");
    let ended = gateway.wait();
    assert!(!ended.status.success());
    // The directory has gone with the gateway's files; what it leaves is made anew.
    let elsewhere = tempfile::tempdir().unwrap();
    let left = elsewhere.path().join("left.sock");
    drop(UnixListener::bind(&left).unwrap());
    assert!(left.exists() && !path.exists());
    let listening = |path: &Path| {
        let listeners = format!(
            "listeners: [{{ name: main, bind: 127.0.0.1:0 }}, {{ bind: \"unix:{}\" }}]\n{answering}",
            path.display()
        );
        Setup::new(&listeners).try_start()
    };
    let first = listening(&left).unwrap_or_else(|ended| panic!("{ended:?}"));
    assert!(is_good(&say(&left, b"", "").unwrap()));
    let Err(second) = listening(&left) else { panic!("two gateways at one path") };
    assert!(second.err.contains("Address already in use"), "{}", second.err);
    assert!(is_good(&say(&left, b"", "").unwrap()));
    // What is no socket is nobody's to remove.
    let file = elsewhere.path().join("file");
    fs::write(&file, "content").unwrap();
    let Err(refused) = listening(&file) else { panic!("a file was replaced") };
    assert!(refused.err.contains("Address already in use"), "{}", refused.err);
    assert_eq!(fs::read_to_string(&file).unwrap(), "content");
    // Nor is what another process has put in its place.
    fs::remove_file(&left).unwrap();
    let _others = UnixListener::bind(&left).unwrap();
    first.stop();
    assert!(left.exists());
}

#[test]
fn it_comes_and_goes_with_reloads() {
    let gateway = setup("", "routes: [{ respond: { status: 200 } }]").start();
    let (path, other) = (socket(&gateway), gateway.dir().join("other.sock"));
    gateway.replace("gateway.yaml", "/web.sock", "/other.sock");
    gateway.wait_generation(2);
    assert!(!path.exists() && is_good(&say(&other, b"", "").unwrap()));
    // A reload that fails leaves nothing behind.
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let both = format!("[\"unix:${{DIR}}/web.sock\", \"{}\"]", taken.local_addr().unwrap());
    gateway.replace("gateway.yaml", "\"unix:${DIR}/other.sock\"", &both);
    assert!(gateway.wait_refused().contains("Address already in use"));
    assert!(!path.exists() && is_good(&say(&other, b"", "").unwrap()));
}

#[test]
fn an_upgrade_hands_it_over_and_costs_no_request() {
    let origin = Origin::start();
    let gateway = setup("", "workers: 2").before(&origin).start();
    let (path, stop) = (socket(&gateway), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    let mut asked = 0;
                    while !stop.load(Ordering::SeqCst) {
                        match say(&path, b"", "") {
                            Ok(answer) if is_good(&answer) => asked += 1,
                            other => return Err(other),
                        }
                    }
                    Ok(asked)
                })
            })
            .collect();
        let from = origin.served();
        for turn in 1..=2 {
            gateway.upgrade();
            until("some requests", || {
                origin.served() >= from + turn * 50 || clients.iter().any(|client| client.is_finished())
            });
        }
        stop.store(true, Ordering::SeqCst);
        for client in clients {
            let asked = client.join().unwrap();
            assert!(asked.as_ref().is_ok_and(|asked| *asked > 0), "{asked:?}");
        }
    });
    let _dir = gateway.stop();
    assert!(!path.exists(), "it ends with the last process");
}

#[test]
fn one_of_the_service_manager_stays() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("managed.sock");
    let socket = UnixListener::bind(&path).unwrap();
    let before = mode(&path);
    let config = format!(
        "workers: 2\nlisteners: [{{ name: main, bind: 127.0.0.1:0 }}, {{ name: web, bind: \"unix:{}\" }}]\nroutes: [{{ respond: {{ status: 200 }} }}]\n",
        path.display()
    );
    let setup = Setup::new(&config);
    let start = setup.dir().join("start");
    let script = format!(
        "#!/bin/sh\nexec 3<&0 </dev/null\nexport LISTEN_FDS=1 LISTEN_PID=$$\nexec {} \"$@\"\n",
        program().display()
    );
    fs::write(&start, script).unwrap();
    fs::set_permissions(&start, fs::Permissions::from_mode(0o755)).unwrap();
    let gateway = setup.program(&start).stdin(socket.try_clone().unwrap()).start();
    assert!(is_good(&say(&path, b"", "").unwrap()));
    gateway.upgrade();
    assert!(is_good(&say(&path, b"", "").unwrap()));
    gateway.stop();
    assert_eq!(mode(&path), before);
    assert!(UnixStream::connect(&path).is_ok(), "the service manager listens on");
}

#[test]
fn a_proxy_says_who_its_clients_are_if_it_is_to() {
    let origin = Origin::start();
    let headers: [&[u8]; 2] = [
        b"PROXY TCP4 192.0.2.7 198.51.100.1 4711 443\r\n",
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x07\xc6\x33\x64\x01\x12\x67\x01\xbb",
    ];
    let gateway = setup("proxy_protocol: { from: [unix] }", "").before(&origin).start();
    for header in headers {
        let answer = say(&socket(&gateway), header, "").unwrap();
        assert!(is_good(&answer) && answer.contains("\"x-forwarded-for\":\"192.0.2.7\""), "{answer}");
    }
    assert_eq!(gateway.logged_path("/said")["client"], "192.0.2.7");
    let without = say(&socket(&gateway), b"", "");
    assert!(without.is_err() || without.as_ref().unwrap().is_empty(), "{without:?}");
    let others = setup("proxy_protocol: { from: [127.0.0.0/8, ::/0] }", "").before(&origin).start();
    let refused = say(&socket(&others), headers[0], "");
    assert!(refused.is_err() || refused.as_ref().unwrap().is_empty(), "{refused:?}");

    let trusting = setup("", "trusted_proxies: [unix]").before(&origin).start();
    let answer = say(&socket(&trusting), b"", "x-forwarded-for: 192.0.2.7\r\n").unwrap();
    assert!(answer.contains("\"x-forwarded-for\":\"192.0.2.7, unknown\""), "{answer}");
    assert_eq!(trusting.logged_path("/said")["client"], "192.0.2.7");
}

#[test]
fn rules_for_addresses_let_nobody_in_who_has_none() {
    let rules = |allow: &str| {
        let plugin = format!("plugins: [{{ ip_filter: {{ allow: [{allow}] }} }}]");
        let gateway = setup(&plugin, "routes: [{ respond: { status: 200 } }]").start();
        get(&gateway)
    };
    assert!(rules("127.0.0.0/8, 10.0.0.0/8, '::/0'").starts_with("HTTP/1.1 403 "));
    assert!(is_good(&rules("127.0.0.0/8, 0.0.0.0")));
}

#[test]
fn its_clients_are_one_client_to_limits() {
    let gateway =
        setup("limits: { connections_per_client: 2 }", "routes: [{ respond: { status: 200 } }]").start();
    let mut held: Vec<_> = (0..2).map(|_| UnixStream::connect(socket(&gateway)).unwrap()).collect();
    for stream in &mut held {
        stream.write_all(b"GET / HTTP/1.1\r\nhost: g\r\n\r\n").unwrap();
        stream.read_exact(&mut [0; 12]).unwrap();
    }
    let refused = say(&socket(&gateway), b"", "");
    assert!(refused.is_err() || refused.as_ref().unwrap().is_empty(), "{refused:?}");
    drop(held);
    until("a place", || say(&socket(&gateway), b"", "").is_ok_and(|answer| is_good(&answer)));
}

#[test]
fn what_is_no_place_for_a_socket_is_refused() {
    let refused = |listener: &str| {
        let ended =
            Setup::new(&format!("listeners: [{listener}]\nroutes: [{{ respond: {{}} }}]\n")).try_start();
        ended.err().map(|ended| ended.err).unwrap_or_default()
    };
    let text = refused("{ bind: \"unix:web.sock\" }");
    assert!(text.contains("a Unix socket has an absolute path"), "{text}");
    let text = refused("{ bind: 127.0.0.1:0, socket_mode: 0600 }");
    assert!(text.contains("it is for Unix sockets, and there is none"), "{text}");
    let text = refused("{ bind: \"unix:/nonexistent/web.sock\" }");
    assert!(text.contains("cannot listen at unix:/nonexistent/web.sock: No such file"), "{text}");
    let text = refused("{ bind: [\"unix:/run/a.sock\", \"unix:/run/a.sock\"] }");
    assert!(text.contains("unix:/run/a.sock is already used by listener"), "{text}");
}
