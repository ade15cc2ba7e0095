//! The gateway as a process of its own.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, PipeWriter, Read};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::Value;
use tempfile::TempDir;

use crate::{Answer, Http, Origin, PATIENCE, Request, request, until, wait_for};

/// Lines of output that are kept for a test that fails.
const KEPT_LINES: usize = 2000;

/// What a configuration gets for what it does not say: a port that the system chooses, a log that can
/// be read by a test, and nothing outside of its directory.
const DEFAULTS: [(&str, &str); 6] = [
    ("admin", "admin: { bind: 127.0.0.1:0 }\n"),
    ("log", "log: { format: json }\n"),
    ("state_dir", "state_dir: state\n"),
    ("workers", "workers: 1\n"),
    ("listeners", "listeners: [{ name: main, bind: 127.0.0.1:0 }]\n"),
    ("routes", "routes: [{ name: all, upstream: origin }]\n"),
];

/// For a configuration without upstreams, once there is an origin.
const UPSTREAM: &str = "upstreams: { origin: { endpoints: [\"http://${ORIGIN}\"] } }\n";

/// The file in which [`Gateway::logged`] looks; a configuration asks for it with
/// `- access_log: { target: access.log }`.
const ACCESS_LOG: &str = "access.log";

/// A configuration with its files, not started yet.
pub struct Setup {
    dir: Arc<TempDir>,
    config: String,
    arguments: Vec<String>,
    variables: BTreeMap<String, String>,
    stdout: Option<PipeWriter>,
    stdin: Option<OwnedFd>,
    program: PathBuf,
}

/// A gateway that runs, and ends with this value. Its output is shown if the test fails.
pub struct Gateway {
    /// The process that was started.
    child: Child,
    /// The process that serves: that one, or the last that took over.
    pid: AtomicU32,
    dir: Arc<TempDir>,
    variables: BTreeMap<String, String>,
    out: Lines,
    err: Lines,
    admin: SocketAddr,
    /// The first listener, as it was at the start.
    main: SocketAddr,
}

/// What a program said when it had ended.
#[derive(Debug)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub out: String,
    /// Its standard error.
    pub err: String,
}

/// A gateway that ended by itself, with its last words.
pub type Ended = Output;

/// Where the program is: beside the test's own executable, in the directory above.
pub fn program() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let program = test.ancestors().nth(2).unwrap().join("portcullis");
    assert!(
        program.is_file(),
        "{} is not there: `cargo build -p portcullis` first, as `tests/run` does",
        program.display()
    );
    program
}

/// Runs the program to its end.
pub fn run<A: AsRef<OsStr>>(arguments: &[A]) -> Output {
    run_in(Path::new("/"), arguments)
}

/// Runs the program to its end in a directory.
pub fn run_in<A: AsRef<OsStr>>(dir: &Path, arguments: &[A]) -> Output {
    let output = command().args(arguments).current_dir(dir).stdin(Stdio::null()).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Output { status: output.status, out: text(output.stdout), err: text(output.stderr) }
}

fn command() -> Command {
    command_of(&program())
}

fn command_of(program: &Path) -> Command {
    let mut command = Command::new(program);
    for variable in ["PORTCULLIS_CONFIG", "PORTCULLIS_LOG", "NOTIFY_SOCKET", "STATE_DIRECTORY"] {
        command.env_remove(variable);
    }
    command.env("NO_COLOR", "1");
    // Memory that is free goes back to the system at once, so that [`Gateway::memory`] is what is in use.
    command.env("MIMALLOC_PURGE_DELAY", "0").env("MIMALLOC_ALLOW_THP", "0");
    command
}

impl Setup {
    /// A configuration; what it does not say is filled in.
    pub fn new(config: &str) -> Self {
        Setup::within(Arc::new(tempfile::tempdir().unwrap()), config.to_owned(), BTreeMap::new())
    }

    fn within(dir: Arc<TempDir>, config: String, variables: BTreeMap<String, String>) -> Self {
        let arguments = ["run", "gateway.yaml"].map(str::to_owned).into();
        Setup { dir, config, arguments, variables, stdout: None, stdin: None, program: program() }
    }

    /// The same with these arguments instead of `run gateway.yaml`.
    #[must_use]
    pub fn arguments(mut self, arguments: &[&str]) -> Self {
        self.arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        self
    }

    /// The same with a file beside the configuration.
    #[must_use]
    pub fn file(self, name: &str, content: impl AsRef<[u8]>) -> Self {
        write(&self.dir.path().join(name), content.as_ref());
        self
    }

    /// The same with a directory beside the configuration.
    #[must_use]
    pub fn directory(self, name: &str) -> Self {
        fs::create_dir_all(self.dir.path().join(name)).unwrap();
        self
    }

    /// The same with an environment variable.
    #[must_use]
    pub fn variable(mut self, name: &str, value: impl ToString) -> Self {
        self.variables.insert(name.to_owned(), value.to_string());
        self
    }

    /// The same with another program, such as a link to it that the test replaces.
    #[must_use]
    pub fn program(mut self, program: &Path) -> Self {
        self.program = program.to_owned();
        self
    }

    /// The same with this as its standard input.
    #[must_use]
    pub fn stdin(mut self, stdin: impl Into<OwnedFd>) -> Self {
        self.stdin = Some(stdin.into());
        self
    }

    /// The same with a standard output that the test reads, or does not.
    #[must_use]
    pub fn stdout(mut self, pipe: PipeWriter) -> Self {
        self.stdout = Some(pipe);
        self
    }

    /// The same with a server behind it: the variable `ORIGIN`, and the upstream `origin` if the
    /// configuration names none.
    #[must_use]
    pub fn before(mut self, origin: &Origin) -> Self {
        if !says(&self.config, "upstreams") {
            self.config.push_str(UPSTREAM);
        }
        self.variable("ORIGIN", origin.address())
    }

    /// Where its files are.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Starts it and waits until it is ready.
    #[track_caller]
    pub fn start(self) -> Gateway {
        match self.try_start() {
            Ok(gateway) => gateway,
            Err(ended) => panic!("the gateway ended with {}:\n{}", ended.status, ended.err),
        }
    }

    /// Starts it, and waits until it is ready or has ended.
    pub fn try_start(self) -> Result<Gateway, Ended> {
        write(&self.dir.path().join("gateway.yaml"), complete(&self.config).as_bytes());
        Gateway::start(self)
    }
}

/// The configuration with the defaults for what it does not say.
fn complete(config: &str) -> String {
    let missing = DEFAULTS.iter().filter(|(key, _)| !says(config, key));
    missing.fold(format!("{}\n", config.trim_end()), |text, (_, line)| text + line)
}

/// Whether a configuration has this top-level key.
fn says(config: &str, key: &str) -> bool {
    config.lines().any(|line| line.strip_prefix(key).is_some_and(|rest| rest.starts_with(':')))
}

/// Writes a file as editors and deployments do: beside its place, then renamed.
fn write(path: &Path, content: &[u8]) {
    let dir = path.parent().unwrap();
    fs::create_dir_all(dir).unwrap();
    let temporary = dir.join(format!(".{}.tmp", path.file_name().unwrap().to_string_lossy()));
    fs::write(&temporary, content).unwrap();
    fs::rename(temporary, path).unwrap();
}

impl Gateway {
    fn start(setup: Setup) -> Result<Self, Ended> {
        let Setup { dir, arguments, variables, stdout, stdin, program, .. } = setup;
        let mut child = command_of(&program)
            .args(arguments)
            .current_dir(dir.path())
            .envs(&variables)
            .stdin(stdin.map_or_else(Stdio::null, Stdio::from))
            .stdout(stdout.map_or_else(Stdio::piped, Stdio::from))
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (out, err) = (Lines::of(child.stdout.take()), Lines::of(child.stderr.take()));
        let unknown = SocketAddr::from(([127, 0, 0, 1], 0));
        let pid = AtomicU32::new(child.id());
        let mut gateway = Gateway { child, pid, dir, variables, out, err, admin: unknown, main: unknown };
        let ready = wait_for("the gateway to be ready", || {
            if let Some(status) = gateway.child.try_wait().unwrap() {
                return Some(Err(status));
            }
            gateway.admin = gateway.admin_address()?;
            (gateway.ask_admin("GET", "/readyz").ok()?.status == 200).then_some(Ok(()))
        });
        if let Err(status) = ready {
            return Err(gateway.last_words(status));
        }
        gateway.main = address(&gateway.status()["listeners"][0]);
        Ok(gateway)
    }

    /// Sends a request on a connection of its own to the first listener.
    #[track_caller]
    pub fn ask(&self, request: &Request) -> Answer {
        self.connect().ask(request).unwrap_or_else(|error| panic!("no answer: {error}"))
    }

    /// Gets a path.
    #[track_caller]
    pub fn get(&self, target: &str) -> Answer {
        self.ask(&request("GET", target))
    }

    /// A connection to the first listener.
    #[track_caller]
    pub fn connect(&self) -> Http {
        Http::connect(self.address()).unwrap_or_else(|error| panic!("no connection: {error}"))
    }

    /// The first listener's address.
    pub fn address(&self) -> SocketAddr {
        self.main
    }

    /// A listener's address.
    #[track_caller]
    pub fn listener(&self, name: &str) -> SocketAddr {
        let status = self.status();
        let listeners = status["listeners"].as_array().unwrap();
        address(listeners.iter().find(|listener| listener["name"] == name).unwrap())
    }

    /// `/status`.
    #[track_caller]
    pub fn status(&self) -> Value {
        self.admin("GET", "/status").json()
    }

    /// Asks the admin interface.
    #[track_caller]
    pub fn admin(&self, method: &str, path: &str) -> Answer {
        self.ask_admin(method, path)
            .unwrap_or_else(|error| panic!("no answer from the admin interface: {error}"))
    }

    /// Asks the admin interface of a gateway that may be gone.
    pub fn ask_admin(&self, method: &str, path: &str) -> std::io::Result<Answer> {
        Http::connect(self.admin)?.ask(&request(method, path).header("host", &self.admin.to_string()))
    }

    /// The address of the admin interface.
    pub fn admin_at(&self) -> SocketAddr {
        self.admin
    }

    /// Replaces a file as a whole.
    pub fn edit(&self, file: &str, content: impl AsRef<[u8]>) {
        write(&self.dir.path().join(file), content.as_ref());
    }

    /// Changes a part of a file.
    #[track_caller]
    pub fn replace(&self, file: &str, from: &str, to: &str) {
        let text = fs::read_to_string(self.dir.path().join(file)).unwrap();
        assert!(text.contains(from), "`{from}` is not in {file}");
        self.edit(file, text.replace(from, to));
    }

    /// Removes a file.
    pub fn remove(&self, file: &str) {
        fs::remove_file(self.dir.path().join(file)).unwrap();
    }

    /// Where its files are.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The number of the generation that runs.
    #[track_caller]
    pub fn generation(&self) -> u64 {
        self.status()["generation"].as_u64().unwrap()
    }

    /// Waits for a generation; returns the status then.
    #[track_caller]
    pub fn wait_generation(&self, number: u64) -> Value {
        self.wait_status(&format!("generation {number}"), |status| {
            assert!(status["last_error"].is_null(), "refused: {}", status["last_error"]["text"]);
            status["generation"].as_u64() >= Some(number)
        })
    }

    /// Waits until a reload is refused; returns why.
    #[track_caller]
    pub fn wait_refused(&self) -> String {
        let status = self.wait_status("a refused reload", |status| !status["last_error"].is_null());
        status["last_error"]["text"].as_str().unwrap().to_owned()
    }

    /// Waits until the status is as wished.
    #[track_caller]
    pub fn wait_status(&self, what: &str, is: impl Fn(&Value) -> bool) -> Value {
        wait_for(what, || Some(self.status()).filter(&is))
    }

    /// Waits for a line of the access log that is as wished.
    #[track_caller]
    pub fn logged(&self, what: &str, is: impl Fn(&Value) -> bool) -> Value {
        wait_for(&format!("{what} in the access log"), || self.access_log().into_iter().find(&is))
    }

    /// Waits for the access log's line about a path.
    #[track_caller]
    pub fn logged_path(&self, path: &str) -> Value {
        self.logged(path, |line| line["path"] == path)
    }

    /// The access log so far.
    pub fn access_log(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.dir.path().join(ACCESS_LOG)).unwrap_or_default();
        // The last line may be on its way.
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        whole.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Standard error so far: the execution log.
    pub fn log(&self) -> String {
        self.err.text()
    }

    /// Standard output so far.
    pub fn stdout(&self) -> String {
        self.out.text()
    }

    /// A number of the metrics page, which has to know the name; the sum over all that have these labels.
    #[track_caller]
    pub fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let page = self.admin("GET", "/metrics").text();
        sum(&page, name, labels).unwrap_or_else(|| panic!("there is no metric {name}"))
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.pid.load(Ordering::SeqCst)
    }

    /// Memory in use, in KiB.
    pub fn memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// Sends a signal, such as `TERM`.
    #[track_caller]
    pub fn signal(&self, name: &str) {
        let pid = self.pid().to_string();
        assert!(Command::new("kill").args(["-s", name, &pid]).status().unwrap().success());
    }

    /// Has a new process take over, and waits until it has, and until the old one has ended.
    #[track_caller]
    pub fn upgrade(&self) {
        let old = self.pid();
        self.signal("USR2");
        self.wait_handed_over();
        until("the old process to end", || !is_running(old));
    }

    /// Waits until a new process has taken over from the one that serves.
    #[track_caller]
    pub fn wait_handed_over(&self) {
        let old = self.pid();
        let is_it = |event: &Value| event["message"] == "taken over" && event["from"] == old;
        wait_for("a new process", || {
            assert!(!self.log().contains("upgrade failed"), "it failed");
            self.events().into_iter().find(is_it)
        });
        let to = |event: &Value| (event["message"] == "handed over").then(|| event["to"].as_u64())?;
        let new = wait_for("the new process's id", || {
            self.events().iter().filter_map(to).find(|pid| *pid as u32 != old && is_running(*pid as u32))
        });
        self.pid.store(new as u32, Ordering::SeqCst);
    }

    /// Ends it. Its files are as they are then, for another start.
    #[track_caller]
    pub fn stop(self) -> Setup {
        let (dir, variables) = (self.dir.clone(), self.variables.clone());
        self.signal("TERM");
        let ended = self.wait();
        assert!(ended.status.success(), "{ended:?}");
        let config = fs::read_to_string(dir.path().join("gateway.yaml")).unwrap();
        Setup::within(dir, config, variables)
    }

    /// Waits for its end.
    #[track_caller]
    pub fn wait(mut self) -> Ended {
        until("the gateway to end", || !is_running(self.pid()));
        let status = wait_for("the gateway to end", || self.child.try_wait().unwrap());
        self.last_words(status)
    }

    fn last_words(&self, status: ExitStatus) -> Ended {
        Output { status, out: self.out.all(), err: self.err.all() }
    }

    fn admin_address(&self) -> Option<SocketAddr> {
        let mut events = self.events().into_iter();
        events.find(|event| event["message"] == "admin interface")?["address"].as_str()?.parse().ok()
    }

    /// The execution log's events so far.
    fn events(&self) -> Vec<Value> {
        self.log().lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }
}

/// The sum of a metric's series that have these labels; none if the page does not know the name.
fn sum(page: &str, name: &str, labels: &[&str]) -> Option<f64> {
    let mut families = ["", "_bucket", "_sum", "_count"].iter().filter_map(|end| name.strip_suffix(end));
    families.find(|family| page.contains(&format!("# TYPE {family} ")))?;
    let series = page.lines().filter(|line| {
        let rest = line.strip_prefix(name);
        rest.is_some_and(|rest| rest.starts_with(['{', ' ']))
            && labels.iter().all(|label| line.contains(label))
    });
    Some(series.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum())
}

fn address(listener: &Value) -> SocketAddr {
    listener["addresses"][0]["actual"].as_str().unwrap().parse().unwrap()
}

impl Drop for Gateway {
    fn drop(&mut self) {
        // It may have ended already.
        if self.pid() != self.child.id() && is_running(self.pid()) {
            let _ = Command::new("kill").args(["-s", "KILL", &self.pid().to_string()]).status();
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- the gateway's standard error\n{}", self.err.all());
            eprintln!("--- its standard output\n{}---", self.out.all());
        }
    }
}

/// Whether a process runs; one that has ended and that nobody has asked about does not.
fn is_running(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

/// The lines that a process has written.
struct Lines {
    kept: Arc<Mutex<Vec<String>>>,
    reader: std::thread::JoinHandle<()>,
}

impl Lines {
    fn of(pipe: Option<impl Read + Send + 'static>) -> Self {
        let kept = Arc::new(Mutex::new(Vec::new()));
        let keeping = kept.clone();
        let reader = std::thread::spawn(move || {
            let Some(pipe) = pipe else { return };
            for line in BufReader::new(pipe).lines().map_while(Result::ok) {
                let mut kept = keeping.lock().unwrap_or_else(PoisonError::into_inner);
                if kept.len() < KEPT_LINES {
                    kept.push(line);
                }
            }
        });
        Lines { kept, reader }
    }

    fn text(&self) -> String {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.iter().map(|line| format!("{line}\n")).collect()
    }

    /// All of a process that has ended.
    fn all(&self) -> String {
        let end = std::time::Instant::now() + PATIENCE;
        while !self.reader.is_finished() && std::time::Instant::now() < end {
            std::thread::yield_now();
        }
        self.text()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_is_completed_with_what_it_does_not_say() {
        let config = complete("workers: 3\nroutes:\n  - respond: { status: 204 }\n");
        assert!(config.starts_with("workers: 3\nroutes:\n"), "{config}");
        assert!(
            config.contains("admin: {") && config.contains("listeners: [") && !config.contains("workers: 1")
        );
        assert_eq!(config.matches("routes:").count(), 1);
    }

    #[test]
    fn a_metric_that_is_not_there_is_not_zero() {
        let page = "# TYPE a_total counter\na_total{b=\"1\"} 2\na_total{b=\"2\"} 3\n# TYPE a histogram\n";
        assert_eq!(sum(page, "a_total", &[]), Some(5.0));
        assert_eq!(sum(page, "a_total", &["b=\"2\""]), Some(3.0));
        assert_eq!(sum(page, "a_count", &[]), Some(0.0));
        assert_eq!(sum(page, "b_total", &[]), None);
    }
}
