//! Deployment: listeners that come, change and go, sockets from a service manager, and another process that takes over.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use portcullis_tests::tools::{Authority, PYTHON, attempt, has, has_module};
use portcullis_tests::{
    Gateway, Http, Http2, Load, Origin, PATIENCE, Setup, program, repository, request, until, wait_for,
};

const ANSWERING: &str = "routes: [{ respond: { status: 204 } }]\n";

#[test]
fn an_upgrade_under_load_costs_no_request() {
    let origin = Origin::start();
    let gateway = Setup::new("workers: 2\n").before(&origin).start();
    let first = gateway.pid();
    let asked = Load::during(gateway.address(), |load| {
        for _ in 0..3 {
            load.go_on();
            gateway.upgrade();
        }
        load.go_on();
    });
    assert!(asked >= 400 && gateway.pid() != first);
    assert_eq!(gateway.status()["listeners"][0]["addresses"][0]["actual"], gateway.address().to_string());
    gateway.stop();
}

#[test]
fn workers_may_become_more_or_fewer() {
    let gateway = Setup::new(&format!("workers: 3\n{ANSWERING}")).start();
    for workers in [1, 4] {
        let config = fs::read_to_string(gateway.dir().join("gateway.yaml")).unwrap();
        let from = config.lines().find(|line| line.starts_with("workers:")).unwrap();
        gateway.replace("gateway.yaml", from, &format!("workers: {workers}"));
        gateway.upgrade();
        // As many connections as find every socket.
        for _ in 0..50 {
            assert_eq!(gateway.get("/").status, 204);
        }
    }
}

#[test]
fn what_is_under_way_ends_in_the_old_process() {
    let origin = Origin::start();
    let gateway = Setup::new("").before(&origin).start();
    let mut http1 = gateway.connect();
    http1.write(b"GET /hold HTTP/1.1\r\nhost: g\r\n\r\n").unwrap();
    let mut http2 = Http2::open(gateway.address());
    http2.get(1, "/hold", &[]);
    until("the requests to be held", || origin.held() == 2);
    let old = gateway.pid();
    gateway.signal("USR2");
    gateway.wait_handed_over();
    http2.read_until(Http2::GOAWAY);
    assert!(gateway.pid() != old && Path::new(&format!("/proc/{old}")).exists());
    assert_eq!(gateway.admin("GET", "/readyz").status, 200);
    assert_eq!(gateway.get("/").status, 200);
    assert_eq!(origin.held(), 2);
    origin.release();
    assert_eq!(http1.answer("GET").unwrap().status, 200);
    assert_eq!(http2.read_until(Http2::HEADERS).1, 1);
    assert!(http1.is_closed());
}

#[test]
fn a_new_process_that_fails_leaves_the_old_one_serving_and_says_why() {
    let setup = Setup::new(ANSWERING);
    let link = setup.dir().join("gateway");
    symlink(program(), &link).unwrap();
    let gateway = setup.program(&link).start();
    let pid = gateway.pid();
    let fails = |why: &str| {
        let before = gateway.log().matches("upgrade failed").count();
        gateway.signal("USR2");
        until("the upgrade to fail", || gateway.log().matches("upgrade failed").count() > before);
        let log = gateway.log();
        let said = log.lines().rfind(|line| line.contains("upgrade failed")).unwrap();
        assert!(said.contains(why), "{said}");
        assert_eq!((gateway.get("/").status, gateway.pid()), (204, pid));
    };
    fs::remove_file(&link).unwrap();
    fails("can't be started: No such file");
    fs::write(&link, "#!/bin/sh\nexit 3\n").unwrap();
    fs::set_permissions(&link, fs::Permissions::from_mode(0o755)).unwrap();
    fails("ended with exit status: 3");
    fs::remove_file(&link).unwrap();
    symlink(program(), &link).unwrap();
    gateway.edit("gateway.yaml", "listeners: [\n");
    fails("gateway.yaml:1:");
    assert_eq!(gateway.admin("GET", "/readyz").status, 200);
}

#[test]
fn a_handover_that_fails_costs_nothing_that_the_new_process_has_taken_in() {
    if !has_module("socket") {
        return;
    }
    for swallowed in ["go", "done"] {
        let origin = Origin::start();
        let setup = Setup::new("").before(&origin).variable("GATEWAY", program().display());
        let link = setup.dir().join("gateway");
        symlink(program(), &link).unwrap();
        let gateway = setup.program(&link).file("swallow", swallowed).start();
        fs::remove_file(&link).unwrap();
        let between = repository().join("tests/peers/handover.py");
        fs::write(&link, format!("#!/bin/sh\nexec {PYTHON} {} \"$@\"\n", between.display())).unwrap();
        fs::set_permissions(&link, fs::Permissions::from_mode(0o755)).unwrap();
        gateway.signal("USR2");
        let new = wait_for("the new process to be ready", || {
            let log = gateway.log();
            let said = log.lines().find_map(|line| line.strip_prefix("successor "))?.to_owned();
            said.split(' ').next()?.parse::<u32>().ok()
        });
        // Now only the new one accepts.
        gateway.signal("STOP");
        let mut held = gateway.connect();
        held.write(b"GET /hold HTTP/1.1\r\nhost: g\r\n\r\n").unwrap();
        until("the request to be held", || origin.held() == 1);
        gateway.signal("CONT");
        gateway.edit("begin", "");
        until("the new process to drain", || gateway.log().contains("\"draining\""));
        assert_eq!(gateway.get("/").status, 200);
        origin.release();
        assert_eq!(held.answer("GET").unwrap().status, 200, "`{swallowed}` is swallowed");
        until("the new process to end", || !Path::new(&format!("/proc/{new}")).exists());
        until("the upgrade to fail", || gateway.log().contains("upgrade failed"));
        assert_eq!(gateway.get("/").status, 200);
        gateway.stop();
    }
}

#[test]
fn a_process_that_is_to_end_is_not_followed_by_another() {
    let origin = Origin::start();
    let setup = Setup::new("").before(&origin);
    let link = setup.dir().join("gateway");
    symlink(program(), &link).unwrap();
    let gateway = setup.program(&link).start();
    fs::remove_file(&link).unwrap();
    // The new process takes its time.
    let script =
        format!("#!/bin/sh\nuntil [ -e begin ]; do sleep 0.01; done\nexec {} \"$@\"\n", program().display());
    fs::write(&link, script).unwrap();
    fs::set_permissions(&link, fs::Permissions::from_mode(0o755)).unwrap();
    let mut held = gateway.connect();
    held.write(b"GET /hold HTTP/1.1\r\nhost: g\r\n\r\n").unwrap();
    until("the request to be held", || origin.held() == 1);
    gateway.signal("USR2");
    until("the upgrade to begin", || gateway.log().contains("\"upgrading\""));
    gateway.signal("TERM");
    until("the drain to begin", || gateway.log().contains("\"draining\""));
    gateway.edit("begin", "");
    // The new process is turned down, and drains what it has taken in.
    until("both to drain", || gateway.log().matches("\"draining\"").count() == 2);
    origin.release();
    assert_eq!(held.answer("GET").unwrap().status, 200);
    let address = gateway.address();
    let ended = gateway.wait();
    assert!(ended.status.success() && !ended.err.contains("taken over"), "{}", ended.err);
    until("nobody to listen", || Http::connect(address).is_err());
}

#[test]
fn the_service_manager_and_the_pid_file_follow_the_new_process() {
    let setup = Setup::new(&format!("pid_file: gateway.pid\n{ANSWERING}"));
    let path = setup.dir().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    // How it is, is told at any time.
    let told = || loop {
        let mut message = [0; 1024];
        let length = socket.recv(&mut message).unwrap();
        let message = String::from_utf8_lossy(&message[..length]).into_owned();
        if !message.starts_with("STATUS=") {
            return message;
        }
    };
    let gateway = setup.variable("NOTIFY_SOCKET", path.display()).start();
    assert!(told().starts_with("READY=1"));
    gateway.upgrade();
    assert_eq!(told(), format!("MAINPID={}", gateway.pid()));
    assert!(told().starts_with("READY=1"));
    let pid_file = gateway.dir().join("gateway.pid");
    assert_eq!(fs::read_to_string(&pid_file).unwrap().trim(), gateway.pid().to_string());
    gateway.signal("TERM");
    assert!(told().starts_with("STOPPING=1"));
    until("the PID file to go", || !pid_file.exists());
    gateway.wait();
}

/// A gateway with a socket as from a service manager.
fn activated(config: &str, socket: &TcpListener) -> Gateway {
    let setup = Setup::new(config);
    let start = setup.dir().join("start");
    let script = format!(
        "#!/bin/sh\nexec 3<&0 </dev/null\nexport LISTEN_FDS=1 LISTEN_FDNAMES=main LISTEN_PID=$$\nexec {} \"$@\"\n",
        program().display()
    );
    fs::write(&start, script).unwrap();
    fs::set_permissions(&start, fs::Permissions::from_mode(0o755)).unwrap();
    setup.program(&start).stdin(socket.try_clone().unwrap()).start()
}

/// How often a process has a socket open.
fn descriptors(gateway: &Gateway, address: SocketAddr) -> usize {
    let hex = format!("0100007F:{:04X} ", address.port());
    let tables = fs::read_to_string("/proc/net/tcp").unwrap();
    let listens = tables.lines().find(|line| line.contains(&hex) && line.contains(" 0A ")).unwrap();
    let inode = listens.split_whitespace().nth(9).unwrap();
    let open = fs::read_dir(format!("/proc/{}/fd", gateway.pid())).unwrap();
    let links = open.filter_map(|entry| fs::read_link(entry.unwrap().path()).ok());
    links.filter(|link| link.to_string_lossy() == format!("socket:[{inode}]")).count()
}

#[test]
fn a_socket_of_the_service_manager_is_shared_by_the_workers() {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let config = |listeners: &str| format!("workers: 2\nlisteners: {listeners}\n{ANSWERING}");
    let listener = format!("[{{ name: web, bind: \"{address}\" }}]");
    let gateway = activated(&config(&listener), &socket);
    assert_eq!(gateway.address(), address);
    assert!(descriptors(&gateway, address) >= 3, "each worker has it");
    for _ in 0..20 {
        assert_eq!(gateway.get("/").status, 204);
    }
    // The listener goes and comes back, which a socket that is still open elsewhere would not allow.
    let go_and_come_back = || {
        gateway.replace("gateway.yaml", &listener, "[{ name: web, bind: 127.0.0.2:0 }]");
        gateway.wait_generation(2);
        gateway.replace("gateway.yaml", "[{ name: web, bind: 127.0.0.2:0 }]", &listener);
        gateway.wait_generation(3);
        assert_eq!(gateway.get("/").status, 204);
    };
    go_and_come_back();
    gateway.upgrade();
    assert_eq!(gateway.get("/").status, 204);
    go_and_come_back();
    // While nobody runs, the socket keeps who comes.
    gateway.stop();
    let mut early = Http::connect(address).unwrap();
    early.write(b"GET / HTTP/1.1\r\nhost: g\r\n\r\n").unwrap();
    let gateway = activated(&config(&listener), &socket);
    assert_eq!(early.answer("GET").unwrap().status, 204);
    drop(gateway);
}

#[test]
fn a_socket_of_the_service_manager_may_belong_to_a_listener_by_its_name() {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let listeners = "listeners: [{ name: other, bind: 127.0.0.2:0 }, { name: main, bind: 127.0.0.3:1 }]\n";
    let gateway = activated(&format!("{listeners}{ANSWERING}"), &socket);
    assert_eq!(gateway.listener("main"), socket.local_addr().unwrap());
    let mut http = Http::connect(socket.local_addr().unwrap()).unwrap();
    assert_eq!(http.ask(&request("GET", "/")).unwrap().status, 204);
}

#[test]
fn what_is_no_socket_is_refused() {
    let script =
        format!("exec 3</dev/null; LISTEN_PID=$$ LISTEN_FDS=1 exec {} run gateway.yaml", program().display());
    let ended = Command::new("sh").args(["-c", &script]).current_dir("/").output().unwrap();
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert!(
        ended.status.code() == Some(1)
            && said.contains("descriptor 3, which was handed over, is no socket to listen at"),
        "{said}"
    );
}

#[test]
fn a_listener_that_is_renamed_or_moved_keeps_what_it_can() {
    let origin = Origin::start();
    let gateway = Setup::new("listeners: [{ name: main, bind: 127.0.0.1:0 }]\n").before(&origin).start();
    let address = gateway.address();
    let mut kept = gateway.connect();
    assert_eq!(kept.ask(&request("GET", "/")).unwrap().status, 200);
    gateway.replace("gateway.yaml", "name: main", "name: renamed");
    gateway.wait_generation(2);
    assert_eq!(gateway.listener("renamed"), address);
    assert_eq!(kept.ask(&request("GET", "/")).unwrap().status, 200);
    // On its way to another port, what is under way ends as it began.
    kept.write(b"GET /hold HTTP/1.1\r\nhost: g\r\n\r\n").unwrap();
    until("the request to be held", || origin.held() == 1);
    gateway.replace("gateway.yaml", "127.0.0.1:0 }]\n", "127.0.0.2:0 }]\n");
    gateway.wait_generation(3);
    let moved = gateway.listener("renamed");
    assert_eq!(Http::connect(moved).unwrap().ask(&request("GET", "/")).unwrap().status, 200);
    until("the old port to be closed", || Http::connect(address).is_err());
    origin.release();
    let answer = kept.answer("GET").unwrap();
    assert_eq!((answer.status, answer.header("connection")), (200, Some("close")));
}

#[test]
fn a_listener_that_is_renamed_keeps_its_count_and_leaves_none_to_its_name() {
    let limits = "limits: { connections: 1 }";
    let one = format!("{{ name: one, bind: 127.0.0.1:0, {limits} }}");
    let gateway = Setup::new(&format!("listeners: [{one}]\n{ANSWERING}")).start();
    let mut first = gateway.connect();
    assert_eq!(first.ask(&request("GET", "/")).unwrap().status, 204);
    let other =
        format!("{{ name: two, bind: 127.0.0.1:0, {limits} }}, {{ name: one, bind: 127.0.0.2:0, {limits} }}");
    gateway.replace("gateway.yaml", &one, &other);
    gateway.wait_generation(2);
    assert!(gateway.connect().is_closed(), "a second connection at the old address");
    let mut new = Http::connect(gateway.listener("one")).unwrap();
    assert_eq!(new.ask(&request("GET", "/")).unwrap().status, 204);
    drop(first);
    until("the place to be free", || {
        gateway.connect().ask(&request("GET", "/")).is_ok_and(|answer| answer.status == 204)
    });
}

#[test]
fn tls_comes_and_goes_with_a_reload() {
    if !has(&["openssl", "curl"]) {
        return;
    }
    let plain = "name: main, bind: 127.0.0.1:0 }";
    let tls = "name: main, bind: 127.0.0.1:0, tls: { certificates: [{ cert: tls/one.test.pem, key: tls/one.test.key }] } }";
    let setup = Setup::new(&format!("listeners: [{{ {plain}]\n{ANSWERING}"));
    let authority = Authority::new(&setup.dir().join("tls"));
    authority.issue("one.test");
    let gateway = setup.start();
    let port = gateway.address().port();
    let status = || {
        let (url, resolve) = (format!("https://one.test:{port}/"), format!("one.test:{port}:127.0.0.1"));
        let curl = [
            "-sS",
            "-o",
            "/dev/null",
            "-w",
            "%{http_code}",
            "--cacert",
            &authority.ca(),
            "--resolve",
            &resolve,
            &url,
        ];
        attempt("curl", &curl).out
    };
    let mut before = gateway.connect();
    assert_eq!(before.ask(&request("GET", "/")).unwrap().status, 204);
    gateway.replace("gateway.yaml", plain, tls);
    gateway.wait_generation(2);
    assert_eq!(status(), "204");
    assert!(before.is_closed(), "what came in the clear ends");
    assert!(gateway.connect().ask(&request("GET", "/")).is_err());
    gateway.replace("gateway.yaml", tls, plain);
    gateway.wait_generation(3);
    assert_eq!(gateway.get("/").status, 204);
    assert_eq!(status(), "000");

    let mut direct = gateway.connect();
    assert_eq!(direct.ask(&request("GET", "/")).unwrap().status, 204);
    let behind = "name: main, bind: 127.0.0.1:0, proxy_protocol: { from: [127.0.0.9/32] } }";
    gateway.replace("gateway.yaml", plain, behind);
    gateway.wait_generation(4);
    assert!(direct.is_closed(), "what came past the proxies ends");
}

#[test]
fn a_reload_that_asks_more_of_clients_ends_what_began_before_it() {
    if !has(&["openssl"]) {
        return;
    }
    let listener = |mode: &str| {
        format!(
            "limits: {{ idle_timeout: 1h, header_timeout: 1h }}, tls: {{ certificates: [{{ cert: tls/one.test.pem, key: tls/one.test.key }}], client_auth: {{ ca: tls/ca.pem, mode: {mode} }} }}"
        )
    };
    let setup = Setup::new(&format!(
        "listeners: [{{ name: main, bind: 127.0.0.1:0, {} }}]\n{ANSWERING}",
        listener("optional")
    ));
    Authority::new(&setup.dir().join("tls")).issue("one.test");
    let gateway = setup.start();
    let mut client = Command::new("openssl")
        .args(["s_client", "-quiet", "-connect", &gateway.address().to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(client.stdout.take().unwrap()).lines();
    client.stdin.as_mut().unwrap().write_all(b"GET / HTTP/1.1\r\nhost: one.test\r\n\r\n").unwrap();
    assert_eq!(said.next().unwrap().unwrap(), "HTTP/1.1 204 No Content");
    // What asks for nothing more leaves it alone.
    gateway.replace("gateway.yaml", "idle_timeout: 1h", "idle_timeout: 2h");
    gateway.wait_generation(2);
    assert_eq!(gateway.metric("portcullis_connections_open", &[]), 1.0);
    gateway.replace("gateway.yaml", "mode: optional", "mode: required");
    gateway.wait_generation(3);
    until("the connection to be closed", || client.try_wait().unwrap().is_some());
    assert_eq!(gateway.metric("portcullis_connections_open", &[]), 0.0);
}

#[test]
fn whoever_waits_to_be_accepted_is_answered_though_the_process_ends() {
    const CLIENTS: usize = 1000;
    let gateway = Setup::new(ANSWERING).start();
    // More than are accepted before the end is known of.
    gateway.signal("STOP");
    let mut waiting: Vec<_> = (0..CLIENTS).map(|_| gateway.connect()).collect();
    for http in &mut waiting {
        http.write(b"GET / HTTP/1.1\r\nhost: g\r\n\r\n").unwrap();
    }
    gateway.signal("TERM");
    gateway.signal("CONT");
    let lost = waiting
        .iter_mut()
        .map(|http| http.answer("GET"))
        .filter(|answer| !answer.as_ref().is_ok_and(|answer| answer.status == 204));
    assert_eq!(lost.count(), 0);
    assert!(gateway.wait().status.success());
}

#[test]
fn without_descriptors_nobody_new_is_served_and_everybody_once_there_are_some() {
    let setup = Setup::new(ANSWERING);
    let start = setup.dir().join("start");
    let script = format!("#!/bin/sh\nulimit -n 64\nexec {} \"$@\"\n", program().display());
    fs::write(&start, script).unwrap();
    fs::set_permissions(&start, fs::Permissions::from_mode(0o755)).unwrap();
    let gateway = setup.program(&start).start();
    let failures = || gateway.log().matches("\"accept failed\"").count();
    let mut served = gateway.connect();
    assert_eq!(served.ask(&request("GET", "/")).unwrap().status, 204);
    let begin = Instant::now();
    let mut open: Vec<_> = (0..64).map(|_| gateway.connect()).collect();
    until("it to fail several times", || failures() >= 4);
    // It pauses in between.
    let most = begin.elapsed().as_millis() / 50 + 1;
    assert!(failures() as u128 <= most, "{} in {:?}", failures(), begin.elapsed());
    assert_eq!(served.ask(&request("GET", "/")).unwrap().status, 204);
    let mut last = open.pop().unwrap();
    last.write(b"GET / HTTP/1.1\r\nhost: g\r\n\r\n").unwrap();
    open.truncate(10);
    assert_eq!(last.answer("GET").unwrap().status, 204);
    assert_eq!(gateway.get("/").status, 204);
    until("the admin interface", || {
        gateway.ask_admin("GET", "/readyz").is_ok_and(|answer| answer.status == 200)
    });
    open.extend((0..64).map(|_| gateway.connect()));
    let before = failures();
    until("it to fail again", || failures() > before);
    gateway.signal("TERM");
    drop(open);
    assert!(gateway.wait().status.success());
}

#[test]
fn an_ipv4_address_is_the_same_at_a_socket_for_both_families() {
    let origin = Origin::start();
    let ask = |settings: &str, more: &str, before: &[u8]| {
        let socket = TcpListener::bind("[::]:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        let config = format!(
            "plugins: [{{ access_log: {{ target: access.log }} }}]\nlisteners: [{{ name: main, bind: \"[::]:{port}\", {settings} }}]\n{more}upstreams: {{ origin: {{ endpoints: [\"http://{}\"] }} }}\n",
            origin.address()
        );
        let _gateway = activated(&config, &socket);
        let clients = (0..3).map(|_| Http::connect(([127, 0, 0, 1], port).into()).unwrap());
        let mut clients: Vec<_> = clients.collect();
        let asked = request("GET", "/").header("x-forwarded-for", "192.0.2.7");
        clients.iter_mut().for_each(|http| http.write(before).unwrap());
        clients
            .iter_mut()
            .map(|http| Some(http.ask(&asked).ok()?.json()["headers"]["x-forwarded-for"].clone()))
            .collect::<Vec<_>>()
    };
    // As a trusted proxy, who is believed and may have more connections than others.
    let one = "limits: { connections_per_client: 1 }";
    let trusted = ask(one, "trusted_proxies: [127.0.0.0/8]\n", b"");
    assert_eq!(trusted, vec![Some("192.0.2.7, 127.0.0.1".into()); 3]);
    let stranger = ask(one, "", b"");
    assert_eq!(stranger, [Some("127.0.0.1".into()), None, None]);
    // As one who says whose connections he passes on.
    let header = b"PROXY TCP4 192.0.2.9 192.0.2.1 1 2\r\n";
    let proxied = ask("proxy_protocol: { from: [127.0.0.0/8] }", "", header);
    assert_eq!(proxied, vec![Some("192.0.2.9".into()); 3]);
    // And as he names them.
    let header = b"PROXY TCP6 ::ffff:10.0.0.1 ::1 1 2\r\n";
    let settings = format!("{one}, proxy_protocol: {{ from: [127.0.0.1] }}");
    let mapped = ask(&settings, "trusted_proxies: [10.0.0.0/8]\n", header);
    assert_eq!(mapped, vec![Some("192.0.2.7, 10.0.0.1".into()); 3]);
}

#[test]
fn an_idle_connection_may_still_ask_while_its_process_ends() {
    let gateway = Setup::new(ANSWERING).start();
    let mut idle = gateway.connect();
    assert_eq!(idle.ask(&request("GET", "/")).unwrap().status, 204);
    gateway.signal("TERM");
    // Every request is answered; the one after the drain has begun is told to be the last.
    until("the last answer", || {
        let answer = idle.ask(&request("GET", "/")).unwrap();
        assert_eq!(answer.status, 204);
        answer.header("connection") == Some("close")
    });
    gateway.wait();
}
