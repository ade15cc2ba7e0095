//! The gateway at full load, reloaded again and again, while its endpoints are killed, stopped, slowed, reset and
//! started again: no request that was safe to repeat may fail, and memory is as flat at the end as after warming up.
//!
//! In the suite it runs for some seconds. `tests/soak` runs it for a minute, or as many seconds as it is told.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test that cannot go on ends, and this one reports"
)]

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use portcullis_tests::tools::guest;
use portcullis_tests::{Gateway, Http2, Setup, Stop, nobody, request, server, until, wait_for};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// How many seconds, if not these.
const VARIABLE: &str = "PORTCULLIS_SOAK";
const SECONDS: u64 = 5;

const CLIENTS: usize = 6;
/// Those that speak HTTP/2.
const HTTP2_CLIENTS: usize = 2;
/// Of so many requests one is of a kind that is not repeated.
const POST_EVERY: usize = 8;
const RELOAD_EVERY: Duration = Duration::from_millis(100);

/// What is done to an endpoint.
const WELL: u8 = 0;
const SLOW: u8 = 1;
const RESETS: u8 = 2;

/// An endpoint in this process, which is slow or resets connections when told so.
struct Moody {
    address: SocketAddr,
    mood: Arc<AtomicU8>,
}

impl Moody {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let (address, mood) = (listener.local_addr().unwrap(), Arc::new(AtomicU8::new(WELL)));
        let moods = mood.clone();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                let mut connections = tokio::task::JoinSet::new();
                while let Ok((stream, _)) = listener.accept().await {
                    connections.spawn(serve(stream, moods.clone()));
                    while connections.try_join_next().is_some() {}
                }
            });
        });
        Moody { address, mood }
    }

    fn set(&self, mood: u8) {
        self.mood.store(mood, SeqCst);
    }
}

async fn serve(mut stream: tokio::net::TcpStream, mood: Arc<AtomicU8>) -> std::io::Result<()> {
    let mut read = Vec::new();
    loop {
        stream.readable().await?;
        if mood.load(SeqCst) == RESETS {
            // The system resets a connection that is closed with something unread.
            return Ok(());
        }
        if stream.read_buf(&mut read).await? == 0 {
            return Ok(());
        }
        // Bodies are as long as the end of a head, and end alike.
        if !read.ends_with(b"\r\n\r\n") {
            continue;
        }
        read.clear();
        if mood.load(SeqCst) == SLOW {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nmoody").await?;
    }
}

/// Why a request fails that an endpoint may have got. All others can be sent again, whatever they are.
const MAY_BE_SENT: [&str; 2] = ["upstream.failed", "upstream.response_timeout"];

/// Why the gateway gave the answer with this id, as its record says.
fn reason(gateway: &Gateway, id: &str) -> String {
    wait_for("the record", || {
        let record = gateway.admin("GET", &format!("/records/{id}"));
        (record.status == 200)
            .then(|| record.json()["decided_by"]["reason"].as_str().unwrap_or_default().to_owned())
    })
}

/// What clients asked, and what became of it.
#[derive(Default)]
struct Tally {
    stop: AtomicBool,
    gets: AtomicUsize,
    failed_gets: AtomicUsize,
    posts: AtomicUsize,
    failed_posts: AtomicUsize,
    /// Those of them of which nothing was sent.
    unsent_posts: AtomicUsize,
}

impl Tally {
    fn run(&self, gateway: &Gateway) {
        let mut client = gateway.connect();
        for number in 0.. {
            if self.stop.load(SeqCst) {
                return;
            }
            let is_post = number % POST_EVERY == 0;
            let (asked, failed) =
                if is_post { (&self.posts, &self.failed_posts) } else { (&self.gets, &self.failed_gets) };
            let sent = if is_post { request("POST", "/").body("\r\n\r\n") } else { request("GET", "/") };
            asked.fetch_add(1, SeqCst);
            match client.ask(&sent) {
                Ok(answer) if answer.status == 200 => {}
                Ok(answer) => {
                    let reason = reason(gateway, answer.json()["request_id"].as_str().unwrap());
                    println!("{}: {} {reason}", if is_post { "POST" } else { "GET" }, answer.status);
                    failed.fetch_add(1, SeqCst);
                    if is_post && !MAY_BE_SENT.contains(&reason.as_str()) {
                        self.unsent_posts.fetch_add(1, SeqCst);
                    }
                }
                Err(error) => {
                    println!("{}: {error}", if is_post { "POST" } else { "GET" });
                    failed.fetch_add(1, SeqCst);
                    client = gateway.connect();
                }
            }
        }
    }

    /// The same over HTTP/2, one stream after the other.
    fn run_http2(&self, gateway: &Gateway) {
        const MANY: u32 = 1000;
        while !self.stop.load(SeqCst) {
            let mut client = Http2::open(gateway.address());
            for number in 0..MANY {
                if self.stop.load(SeqCst) {
                    return;
                }
                self.gets.fetch_add(1, SeqCst);
                let stream = number * 2 + 1;
                client.get(stream, "/", &[]);
                // By itself in the static table (RFC 7541, appendix A).
                let is_ok = client.read_until(Http2::HEADERS).2.first() == Some(&0x88);
                while is_ok && client.read_until(Http2::DATA).2.is_empty() {}
                if !is_ok {
                    let problem = client.read_until(Http2::DATA).2;
                    let said: Value = serde_json::from_slice(&problem).unwrap_or_default();
                    println!(
                        "GET over HTTP/2: {}",
                        reason(gateway, said["request_id"].as_str().unwrap_or_default())
                    );
                    self.failed_gets.fetch_add(1, SeqCst);
                }
            }
        }
    }

    /// Waits until clients have got some more answers.
    fn go_on(&self) {
        let all = || self.gets.load(SeqCst) + self.posts.load(SeqCst);
        let from = all();
        until("more requests", || all() >= from + 200);
    }
}

#[test]
fn no_request_that_may_be_repeated_fails_while_endpoints_do() {
    let seconds = std::env::var(VARIABLE).map_or(SECONDS, |text| text.parse().unwrap());
    let (steady, moody) = (server("steady", nobody()), Moody::start());
    let mut mortal = [nobody(), nobody()].map(|address| (address, Some(server("mortal", address))));
    let endpoints = [steady.address(), moody.address, mortal[0].0, mortal[1].0];
    let urls: Vec<_> = endpoints.iter().map(|address| format!("\"http://{address}\"")).collect();
    let Some(module) = guest("stamp_response") else { return };
    let gateway = Setup::new(&format!(
        "plugins: [{{ rhai: {{ file: edited.rhai }} }}, {{ wasm: {{ file: unchanged.wasm, cpu: 100ms, config: {{ header: x-module }}, grants: {{ clock: true }} }} }}]
upstreams:
  origin:
    endpoints: [{}]
    eject: {{ failures: 3, time: 200ms }}
    timeouts: {{ response: 1s }}
    max_idle: 64
",
        urls.join(", ")
    ))
    .file("edited.rhai", "fn on_request(ctx) { ctx.request.headers[\"x-edition\"] = \"0\"; }\n")
    .file("unchanged.wasm", module)
    .start();
    let (tally, begin) = (Tally::default(), Instant::now());
    let is_over = || begin.elapsed() >= Duration::from_secs(seconds);
    let (mut warm, mut harms) = (None, 0);
    std::thread::scope(|scope| {
        (0..CLIENTS).for_each(|_| _ = scope.spawn(|| tally.run(&gateway)));
        (0..HTTP2_CLIENTS).for_each(|_| _ = scope.spawn(|| tally.run_http2(&gateway)));
        // Whatever happens, the others end, or the scope would not.
        let stop = Stop(&tally.stop);
        scope.spawn(|| reload(&gateway, &tally.stop));
        for round in 0.. {
            harms = round + 1;
            tally.go_on();
            harm(round, &mut mortal, &moody, &tally);
            tally.go_on();
            if warm.is_none() && begin.elapsed() >= Duration::from_secs(seconds) / 3 {
                warm = Some(gateway.memory());
            }
            if is_over() {
                break;
            }
        }
        drop(stop);
    });
    let (warm, end) = (warm.unwrap_or_default(), gateway.memory());
    let count = |count: &AtomicUsize| count.load(SeqCst);
    let (gets, posts) = (count(&tally.gets), count(&tally.posts));
    let (failed, unsafe_failed) = (count(&tally.failed_gets), count(&tally.failed_posts));
    println!(
        "{} requests in {:.0?}, {} reloads, {} ejections: {failed} of {gets} that may be repeated failed, \
         {unsafe_failed} of {posts} that may not; memory {warm} KiB, at the end {end} KiB",
        gets + posts,
        begin.elapsed(),
        gateway.generation() - 1,
        gateway.metric("portcullis_endpoint_ejections_total", &[]),
    );
    assert_eq!(failed, 0, "of {gets}");
    let unsent = count(&tally.unsent_posts);
    assert_eq!(unsent, 0, "of {unsafe_failed} that failed were not sent");
    // At most those that were under way.
    assert!(
        unsafe_failed <= harms * CLIENTS,
        "{unsafe_failed} of {posts}, of which {harms} harms could break some"
    );
    assert!(gateway.generation() > seconds, "{} reloads", gateway.generation() - 1);
    assert!(end <= warm + 4096, "memory grew from {warm} to {end} KiB");
    until("nothing to be under way", || gateway.metric("portcullis_upstream_in_flight", &[]) == 0.0);
}

/// Does something to an endpoint, and undoes it; another thing to another one each time.
fn harm(round: usize, mortal: &mut [(SocketAddr, Option<Gateway>); 2], moody: &Moody, tally: &Tally) {
    let (address, victim) = &mut mortal[round / 4 % 2];
    match round % 4 {
        0 => {
            drop(victim.take());
            tally.go_on();
            *victim = Some(server("mortal", *address));
        }
        1 => {
            let victim = victim.as_ref().unwrap();
            victim.signal("STOP");
            tally.go_on();
            victim.signal("CONT");
        }
        2 => {
            moody.set(SLOW);
            tally.go_on();
            moody.set(WELL);
        }
        _ => {
            moody.set(RESETS);
            tally.go_on();
            moody.set(WELL);
        }
    }
}

/// Reloads as often as said until it is to stop: an edition of the script, or other settings, while the module stays.
fn reload(gateway: &Gateway, stop: &AtomicBool) {
    let mut due = Instant::now();
    for number in 0.. {
        until("the next reload", || Instant::now() >= due || stop.load(SeqCst));
        if stop.load(SeqCst) {
            return;
        }
        let turn = number / 2;
        if number % 2 == 0 {
            gateway.replace("edited.rhai", &format!("\"{turn}\""), &format!("\"{}\"", turn + 1));
        } else {
            let (from, to) = (64 + turn % 2, 65 - turn % 2);
            gateway.replace("gateway.yaml", &format!("max_idle: {from}"), &format!("max_idle: {to}"));
        }
        due = Instant::now() + RELOAD_EVERY;
    }
}
