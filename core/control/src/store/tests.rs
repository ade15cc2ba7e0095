//! One suite for every backend, and what is particular to a file. How Redis goes away is tested from outside.

use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Barrier;

use portcullis_plugin::{StoreError::NotANumber, block_on};
use portcullis_proxy::metrics::Metrics;

use super::*;

const MINUTE: Duration = Duration::from_secs(60);

fn stores() -> Stores {
    Stores::new(Metrics::new(1).store)
}

fn key(key: &str) -> String {
    key.to_owned()
}

/// Waits until a store has been opened.
fn opened(stores: &Stores, plan: &StorePlan) -> Arc<OpenStore> {
    let store = stores.open(plan).unwrap();
    let begun = Instant::now();
    while block_on(store.get(key("probe"))) == Err(StoreError::Unavailable) {
        assert!(begun.elapsed() < MINUTE, "the store does not open");
        thread::yield_now();
    }
    assert!(store.up.load(Relaxed));
    store
}

fn file(dir: &Path) -> StorePlan {
    StorePlan::File(dir.join("store.redb"), MINUTE)
}

/// What every store does.
fn conforms(store: &Arc<OpenStore>) {
    let get = |name: &str| block_on(store.get(key(name))).unwrap();
    let swap = |name: &str, expected: Option<&'static str>, value: &'static str| {
        block_on(store.compare_and_set(key(name), expected.map(Bytes::from), value.into(), MINUTE)).unwrap()
    };
    assert_eq!(get("a"), None);
    block_on(store.set(key("a"), Bytes::from_static(b"\0\xff"), MINUTE)).unwrap();
    assert_eq!(get("a"), Some(Bytes::from_static(b"\0\xff")));
    block_on(store.set(key("a"), "".into(), MINUTE)).unwrap();
    assert_eq!(get("a"), Some("".into()));
    assert!(!swap("a", None, "b") && !swap("a", Some("x"), "b") && swap("a", Some(""), "b"));
    assert!(!swap("b", Some(""), "b") && swap("b", None, "c"));
    assert_eq!((get("a"), get("b")), (Some("b".into()), Some("c".into())));
    assert_eq!([(); 2].map(|()| block_on(store.delete(key("a")))), [Ok(true), Ok(false)]);

    let add = |by| block_on(store.add(key("n"), by, MINUTE));
    assert_eq!([add(5), add(-7), add(0)], [Ok(5), Ok(-2), Ok(-2)]);
    assert_eq!(get("n"), Some("-2".into()));
    assert_eq!([add(i64::MAX), add(2), add(1)], [Ok(i64::MAX - 2), Ok(i64::MAX), Err(NotANumber)]);
    assert_eq!(add(-i64::MAX), Ok(0));
    for text in ["", "01", "+1", "x"] {
        block_on(store.set(key("t"), text.into(), MINUTE)).unwrap();
        assert_eq!(block_on(store.add(key("t"), 1, MINUTE)), Err(NotANumber), "{text:?}");
    }

    // A counter ends with its first lifetime, whatever was added; a value with its last.
    let short = Duration::from_millis(300);
    assert_eq!(block_on(store.add(key("short"), 1, short)), Ok(1));
    block_on(store.set(key("gone"), "a".into(), short)).unwrap();
    block_on(store.set(key("kept"), "a".into(), short)).unwrap();
    block_on(store.set(key("kept"), "b".into(), MINUTE)).unwrap();
    assert_eq!(block_on(store.add(key("short"), 1, MINUTE)), Ok(2));
    let begun = Instant::now();
    while get("short").is_some() || get("gone").is_some() {
        assert!(begun.elapsed() < MINUTE / 2, "lifetimes do not end");
        thread::yield_now();
    }
    assert_eq!(get("kept"), Some("b".into()));
    assert!(swap("gone", None, "again"));

    // Everything is atomic between threads.
    let (start, won) = (Barrier::new(4), AtomicUsize::new(0));
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                start.wait();
                for round in 0..50 {
                    block_on(store.add(key("race"), 1, MINUTE)).unwrap();
                    let name = format!("lock-{round}");
                    let mine = block_on(store.compare_and_set(name, None, "a".into(), MINUTE)).unwrap();
                    won.fetch_add(usize::from(mine), Relaxed);
                }
            });
        }
    });
    assert_eq!((get("race"), won.into_inner()), (Some("200".into()), 50));
}

#[test]
fn memory_conforms() {
    conforms(&opened(&stores(), &StorePlan::Memory));
}

#[test]
fn a_file_conforms() {
    let dir = tempfile::tempdir().unwrap();
    conforms(&opened(&stores(), &file(dir.path())));
}

/// Servers that end with this.
struct Servers(Vec<(Child, u16)>, tempfile::TempDir);

impl Servers {
    fn new() -> Self {
        Servers(Vec::new(), tempfile::tempdir().unwrap())
    }

    /// Starts a server and waits until it listens.
    fn add(&mut self, arguments: &[&str]) -> u16 {
        // In the lower half: a node of a cluster listens 10000 ports higher as well.
        let port =
            std::iter::repeat_with(|| TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port())
                .map(|port| 20_000 + port % 10_000)
                .find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
                .unwrap();
        let dir = self.1.path().join(port.to_string());
        std::fs::create_dir(&dir).unwrap();
        // A sentinel writes its configuration.
        let config = dir.join("redis.conf");
        std::fs::write(
            &config,
            format!("bind 127.0.0.1\nport {port}\nsave \"\"\n{}\n", arguments.join("\n")),
        )
        .unwrap();
        let is_sentinel = arguments.iter().any(|argument| argument.starts_with("sentinel"));
        let mut command = Command::new("redis-server");
        command.arg(&config).args(is_sentinel.then_some("--sentinel")).current_dir(&dir);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        self.0.push((child, port));
        wait(|| TcpStream::connect(("127.0.0.1", port)).is_ok());
        port
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        for (child, _) in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn wait(mut is: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is() {
        assert!(begun.elapsed() < MINUTE, "waited in vain");
        thread::yield_now();
    }
}

/// Whether there is a Redis; where everything is required there must be one.
fn has_redis() -> bool {
    let found = Command::new("redis-server").arg("--version").stdout(Stdio::null()).status().is_ok();
    assert!(found || std::env::var_os("PORTCULLIS_REQUIRE_EXTRAS").is_none(), "redis-server is needed");
    found
}

fn cli(port: u16, arguments: &[&str]) -> String {
    let output = Command::new("redis-cli").arg("-p").arg(port.to_string()).args(arguments).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

fn redis(ports: &[u16], more: impl FnOnce(&mut portcullis_config::Redis)) -> StorePlan {
    let urls = ports.iter().map(|port| format!("redis://127.0.0.1:{port}").parse().unwrap()).collect();
    let mut redis = portcullis_config::Redis {
        urls,
        cluster: false,
        sentinel: None,
        username: None,
        password: None,
        ca: None,
        prefix: "test/".to_owned(),
    };
    more(&mut redis);
    StorePlan::Redis(Box::new(RedisPlan { redis, password: None, authorities: None }), Duration::from_secs(5))
}

#[test]
fn a_redis_conforms_and_its_keys_have_their_prefix() {
    if !has_redis() {
        return;
    }
    let mut servers = Servers::new();
    let port = servers.add(&[]);
    conforms(&opened(&stores(), &redis(&[port], |_| {})));
    let keys = cli(port, &["KEYS", "*"]);
    assert!(!keys.is_empty() && keys.lines().all(|key| key.starts_with("test/")), "{keys}");
}

#[test]
fn a_cluster_conforms() {
    if !has_redis() {
        return;
    }
    let mut servers = Servers::new();
    let nodes: Vec<u16> = (0..3).map(|_| servers.add(&["cluster-enabled yes"])).collect();
    let addresses: Vec<String> = nodes.iter().map(|port| format!("127.0.0.1:{port}")).collect();
    let create = ["--cluster", "create", &addresses[0], &addresses[1], &addresses[2], "--cluster-yes"];
    let made = Command::new("redis-cli").args(create).stdin(Stdio::null()).output().unwrap();
    assert!(made.status.success(), "{made:?}");
    wait(|| nodes.iter().all(|node| cli(*node, &["CLUSTER", "INFO"]).contains("cluster_state:ok")));
    conforms(&opened(&stores(), &redis(&nodes[..1], |redis| redis.cluster = true)));
    let held = nodes.iter().map(|node| cli(*node, &["DBSIZE"]).trim().parse::<u64>().unwrap());
    assert!(held.into_iter().all(|held| held > 0), "every node has its share");
}

#[test]
fn sentinels_tell_which_the_primary_is_and_which_it_is_after_a_failover() {
    if !has_redis() {
        return;
    }
    let mut servers = Servers::new();
    let primary = servers.add(&[]);
    let replica = servers.add(&[&format!("replicaof 127.0.0.1 {primary}")]);
    let sentinel = servers.add(&[
        &format!("sentinel monitor main 127.0.0.1 {primary} 1"),
        "sentinel down-after-milliseconds main 300",
    ]);
    let store = opened(&stores(), &redis(&[sentinel], |redis| redis.sentinel = Some("main".to_owned())));
    conforms(&store);
    wait(|| cli(replica, &["GET", "test/kept"]).trim() == "b");
    wait(|| cli(sentinel, &["SENTINEL", "REPLICAS", "main"]).contains(&replica.to_string()));
    servers.0[0].0.kill().unwrap();
    wait(|| block_on(store.set(key("after"), "c".into(), MINUTE)).is_ok());
    assert_eq!(block_on(store.get(key("kept"))), Ok(Some("b".into())));
    assert_eq!(cli(replica, &["GET", "test/after"]).trim(), "c");
}

#[test]
fn what_is_in_a_file_is_there_again_later_and_for_others() {
    let dir = tempfile::tempdir().unwrap();
    let (stores, others) = (stores(), self::stores());
    let store = opened(&stores, &file(dir.path()));
    block_on(store.set(key("ban"), "a".into(), MINUTE)).unwrap();
    block_on(store.add(key("n"), 3, MINUTE)).unwrap();
    let other = opened(&others, &file(dir.path()));
    assert_eq!(block_on(other.add(key("n"), 1, MINUTE)), Ok(4), "as after an upgrade, while both run");
    drop((store, other));
    let again = opened(&stores, &file(dir.path()));
    assert_eq!(block_on(again.get(key("ban"))), Ok(Some("a".into())));
    assert_eq!(block_on(again.add(key("n"), 1, MINUTE)), Ok(5));
}

#[test]
fn a_full_file_refuses_what_is_new_and_forgets_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = FileStore::open(&dir.path().join("store.redb"), 2000, Arc::default()).unwrap();
    let lifetime = Duration::from_secs(2);
    let set = |name: &str, bytes: usize| block_on(store.set(key(name), vec![0; bytes].into(), lifetime));
    wait(|| block_on(store.get(key("a"))) == Ok(None));
    assert_eq!([set("a", 1000), set("b", 1000), set("b", 500)], [Ok(()), Err(StoreError::Full), Ok(())]);
    assert_eq!(block_on(store.get(key("a"))).unwrap().map(|value| value.len()), Some(1000));
    assert_eq!(set("a", 1100), Ok(()), "in the place of the old one");
    wait(|| set("b", 1000).is_ok());
    assert_eq!(block_on(store.get(key("a"))), Ok(None), "there was room when its time was over");
}

#[test]
fn a_store_is_one_as_long_as_it_is_used_and_wanted_alike() {
    let dir = tempfile::tempdir().unwrap();
    let stores = stores();
    let store = stores.open(&file(dir.path())).unwrap();
    assert!(Arc::ptr_eq(&store, &stores.open(&file(dir.path())).unwrap()));
    let changed = StorePlan::File(dir.path().join("store.redb"), MINUTE / 2);
    assert!(!Arc::ptr_eq(&store, &stores.open(&changed).unwrap()));
    assert!(Arc::ptr_eq(&stores.memory(), &stores.open(&StorePlan::Memory).unwrap()));
    let isolated = Stores::isolated(Metrics::new(1).store);
    assert!(Arc::ptr_eq(&isolated.memory(), &isolated.open(&changed).unwrap()));
}

#[test]
fn a_file_that_is_no_store_is_told_and_tried_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    std::fs::write(&path, "something else, of more than a header's length".repeat(1000)).unwrap();
    let store = stores().open(&file(dir.path())).unwrap();
    assert_eq!(block_on(store.get(key("a"))), Err(StoreError::Unavailable));
    std::fs::remove_file(&path).unwrap();
    let begun = Instant::now();
    while block_on(store.get(key("a"))) != Ok(None) {
        assert!(begun.elapsed() < MINUTE, "the store does not open");
        thread::yield_now();
    }
}

#[test]
fn who_waits_is_told_in_time_and_too_many_are_told_at_once() {
    struct Stopped;
    impl Store for Stopped {
        fn get(&self, _: String) -> StoreFuture<'_, Option<Bytes>> {
            Box::pin(std::future::pending())
        }
        fn set(&self, _: String, _: Bytes, _: Duration) -> StoreFuture<'_, ()> {
            Box::pin(std::future::pending())
        }
        fn compare_and_set(
            &self,
            _: String,
            _: Option<Bytes>,
            _: Bytes,
            _: Duration,
        ) -> StoreFuture<'_, bool> {
            Box::pin(std::future::pending())
        }
        fn delete(&self, _: String) -> StoreFuture<'_, bool> {
            Box::pin(std::future::pending())
        }
        fn add(&self, _: String, _: i64, _: Duration) -> StoreFuture<'_, i64> {
            Box::pin(std::future::pending())
        }
    }
    let open = |timeout| OpenStore {
        store: Arc::new(Stopped),
        metrics: Metrics::new(1).store,
        up: Arc::default(),
        thread: Some(StoreThread::start(timeout).unwrap()),
    };
    assert_eq!(block_on(open(Duration::from_millis(20)).get(key("a"))), Err(StoreError::Timeout));
    let store = open(MINUTE);
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    let waiting: Vec<_> = (0..MAX_UNDER_WAY)
        .map(|_| {
            let mut wait = store.get(key("a"));
            assert!(wait.as_mut().poll(&mut context).is_pending());
            wait
        })
        .collect();
    assert_eq!(block_on(store.get(key("a"))), Err(StoreError::Unavailable));
    assert_eq!(waiting.len(), MAX_UNDER_WAY);
}
