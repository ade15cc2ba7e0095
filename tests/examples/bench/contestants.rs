//! Who takes part, and how each of them is started: with a configuration from `tests/bench/contestants`.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use portcullis_tests::tools::Authority;
use portcullis_tests::{here, repository};
use tempfile::TempDir;

use crate::Result;
use crate::fresh::{self, Reply};
use crate::machine::Cores;
use crate::process::{Process, command, within};
use crate::template::{Values, render};
use crate::workloads::{Work, Workload};

/// How long a start may take; long enough for an instrumented one.
const START: Duration = Duration::from_secs(120);

/// The host that probes ask for.
const HOST: &str = "bench.test";

/// A program with what its configuration is told.
pub(crate) struct Contestant {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    pub(crate) program: Program,
    tags: &'static [&'static str],
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Program {
    Portcullis,
    Nginx,
    HaProxy,
    Relay,
    Envoy,
    Traefik,
    Caddy,
}

const fn contestant(
    name: &'static str,
    program: Program,
    tags: &'static [&'static str],
    about: &'static str,
) -> Contestant {
    Contestant { name, about, program, tags }
}

/// All of them.
pub(crate) const ALL: &[Contestant] = &[
    contestant("portcullis", Program::Portcullis, &["native"], "with its built-in plugins"),
    contestant("portcullis-rhai", Program::Portcullis, &["rhai"], "the policy as a Rhai script"),
    contestant(
        "portcullis-wasm",
        Program::Portcullis,
        &["fresh"],
        "as a Wasm module, fresh for each request",
    ),
    contestant("portcullis-wasm-reuse", Program::Portcullis, &["reuse"], "as a Wasm module that is reused"),
    contestant("portcullis-rhai-edited", Program::Portcullis, &["rhai", "edited"], "the script being edited"),
    contestant(
        "portcullis-both",
        Program::Portcullis,
        &["rhai", "beside"],
        "script and module, one behind the other",
    ),
    contestant(
        "portcullis-both-edited",
        Program::Portcullis,
        &["rhai", "beside", "edited"],
        "the script being edited, the module unchanged",
    ),
    contestant("nginx", Program::Nginx, &[], "its own directives"),
    contestant("nginx-lua", Program::Nginx, &["lua"], "the policy in Lua"),
    contestant("nginx-edited", Program::Nginx, &["edited"], "its configuration being edited"),
    contestant("haproxy", Program::HaProxy, &[], "its own rules"),
    contestant("haproxy-tcp", Program::Relay, &[], "as a TCP relay, the floor"),
    contestant("envoy", Program::Envoy, &[], "with --with envoy"),
    contestant("traefik", Program::Traefik, &[], "with --with traefik"),
    contestant("caddy", Program::Caddy, &[], "with --with caddy"),
];

impl Contestant {
    /// Whether its policy is changed while it is measured.
    pub(crate) fn is_edited(&self) -> bool {
        self.tags.contains(&"edited")
    }

    /// Whether it takes part only where it is asked for: its program is one of [`peers`].
    pub(crate) fn is_optional(&self) -> bool {
        matches!(self.program, Program::Envoy | Program::Traefik | Program::Caddy)
    }

    /// What is missing for it to take part.
    pub(crate) fn missing(&self, stand: &Stand) -> Option<String> {
        let peer = peers().join(self.name);
        let program = match self.program {
            Program::Portcullis => stand.binary.to_str().unwrap_or_default(),
            Program::Nginx => "nginx",
            Program::HaProxy | Program::Relay => "haproxy",
            Program::Envoy | Program::Traefik | Program::Caddy => peer.to_str().unwrap_or_default(),
        };
        let module = guests().join("bench_policy.wasm");
        let lua = Path::new("/usr/share/nginx/modules/ngx_http_lua_module.so");
        if !crate::machine::has(program) && !Path::new(program).is_file() {
            return Some(format!("{program} is not there"));
        }
        let needs_module = ["fresh", "reuse", "beside"].iter().any(|tag| self.tags.contains(tag));
        if needs_module && !module.is_file() {
            return Some("needs tests/wasm-cargo tests/bench/guest".into());
        }
        (self.tags.contains(&"lua") && !lua.is_file()).then(|| "needs libnginx-mod-http-lua".into())
    }
}

impl Program {
    /// Its configuration, then the files that this names.
    fn files(self) -> &'static [&'static str] {
        match self {
            Program::Portcullis => &["portcullis.yaml", "policy.rhai", "blocked.txt"],
            Program::Nginx => &["nginx.conf", "blocked.geo"],
            Program::HaProxy => &["haproxy.cfg", "routes.map", "blocked.txt"],
            Program::Relay => &["haproxy-tcp.cfg"],
            Program::Envoy => &["envoy.yaml"],
            Program::Traefik => &["traefik.yaml", "traefik-routes.yaml"],
            Program::Caddy => &["Caddyfile"],
        }
    }

    fn command_line(self, binary: &Path, config: &Path, workers: usize) -> Vec<String> {
        let (config, workers) = (config.display().to_string(), workers.to_string());
        let peer = |name| peers().join(name).display().to_string();
        let line: &[&str] = match self {
            Program::Portcullis => &[&binary.display().to_string(), "run", &config],
            Program::Nginx => &["nginx", "-e", "stderr", "-c", &config],
            Program::HaProxy | Program::Relay => &["haproxy", "-db", "-f", &config],
            Program::Envoy => &[
                &peer("envoy"),
                "-c",
                &config,
                "--concurrency",
                &workers,
                "--disable-hot-restart",
                "-l",
                "error",
            ],
            Program::Traefik => &[&peer("traefik"), &format!("--configFile={config}")],
            Program::Caddy => &[&peer("caddy"), "run", "--adapter", "caddyfile", "--config", &config],
        };
        line.iter().map(|word| (*word).to_owned()).collect()
    }
}

fn guests() -> PathBuf {
    repository().join("target/guests")
}

/// Where `tests/bench/run --with` installs programs.
fn peers() -> PathBuf {
    repository().join("target/peers/bin")
}

fn template(name: &str) -> Result<String> {
    let path = here().join("bench/contestants").join(name);
    fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()).into())
}

fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

/// What all contestants have in common: the origin, certificates, a directory.
pub(crate) struct Stand {
    // First, so that the origin ends before its directory goes.
    _origin: Process,
    origin: SocketAddr,
    binary: PathBuf,
    workers: usize,
    pub(crate) cores: Cores,
    pub(crate) tls: Arc<rustls::ClientConfig>,
    pub(crate) dir: TempDir,
}

impl Stand {
    /// Makes what is needed, and starts the origin.
    pub(crate) fn new(dir: TempDir, cores: Cores, binary: PathBuf, workers: usize) -> Result<Self> {
        let at = |name: &str| dir.path().join(name);
        let authority = Authority::new(&at("tls"));
        authority.issue("gateway.test");
        let pem = |ending: &str| fs::read(authority.file(&format!("gateway.test.{ending}")));
        fs::write(at("tls/both.pem"), [pem("pem")?, pem("key")?].concat())?;
        fs::create_dir_all(at("origin/files"))?;
        fs::write(at("origin/files/64k"), vec![b'x'; 64 << 10])?;
        fs::write(at("origin/files/10m"), vec![b'x'; 10 << 20])?;

        let origin = free_address()?;
        let words = vec![("dir", dir.path().display().to_string()), ("port", origin.port().to_string())];
        fs::write(at("origin.conf"), render(&template("origin.conf")?, &Values { tags: Vec::new(), words }))?;
        let mut nginx = command(&cores.origin, "nginx");
        nginx.args(["-e", "stderr", "-c"]).arg(at("origin.conf"));
        let process = Process::start(&mut nginx, File::create(at("origin.log"))?)?;
        let tls = fresh::trusting(&at("tls/ca.pem"))?;
        let stand = Stand { _origin: process, origin, binary, workers, cores, tls, dir };
        let answers = || fresh::ask(origin, None, HOST, "/", &[]).ok();
        within(START, answers).ok_or_else(|| log("the origin does not answer", &at_log(&stand, "origin")))?;
        Ok(stand)
    }

    /// The authority whose certificates the contestants have.
    pub(crate) fn ca(&self) -> PathBuf {
        self.dir.path().join("tls/ca.pem")
    }
}

fn at_log(stand: &Stand, name: &str) -> PathBuf {
    stand.dir.path().join(format!("{name}.log"))
}

fn log(what: &str, file: &Path) -> String {
    format!("{what}: {}", fs::read_to_string(file).unwrap_or_default().trim())
}

/// A contestant at work.
pub(crate) struct Running<'a> {
    pub(crate) process: Process,
    pub(crate) address: SocketAddr,
    pub(crate) dir: PathBuf,
    pub(crate) contestant: &'a Contestant,
    pub(crate) workload: &'static Workload,
    pub(crate) stand: &'a Stand,
}

impl<'a> Running<'a> {
    /// Starts a contestant, by way of `wrapper` if there is one, waits until it answers, and checks that
    /// it does the work that it is to be measured at.
    pub(crate) fn start(
        stand: &'a Stand,
        contestant: &'a Contestant,
        workload: &'static Workload,
        wrapper: &[&str],
    ) -> Result<Self> {
        let dir = stand.dir.path().join(contestant.name);
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir)?;
        let address = free_address()?;
        write_files(stand, contestant, workload, &dir, address, "passed")?;
        let [config, ..] = contestant.program.files() else { return Err("no configuration".into()) };
        let line = contestant.program.command_line(&stand.binary, &dir.join(config), stand.workers);
        let line: Vec<&str> = wrapper.iter().copied().chain(line.iter().map(String::as_str)).collect();
        let [program, arguments @ ..] = line.as_slice() else { return Err("no program".into()) };
        let mut command = command(&stand.cores.contestant, program);
        command.args(arguments).env_remove("PORTCULLIS_LOG").current_dir(&dir);
        // The threads that run Go at a time.
        command.env("GOMAXPROCS", stand.workers.to_string());
        let output = File::create(dir.join("output"))?;
        let process = Process::start(&mut command, output)?;
        let running = Running { process, address, dir, contestant, workload, stand };
        running.wait()?;
        running.check()?;
        Ok(running)
    }

    pub(crate) fn is_tls(&self) -> bool {
        self.workload.tags.contains(&"tls")
    }

    /// One request of the workload's, on a connection of its own.
    pub(crate) fn ask(&self, path: &str) -> Result<Reply> {
        let headers = match &self.workload.work {
            Work::Requests(requests) => requests.headers,
            Work::Idle { .. } => &[],
        };
        let tls = self.is_tls().then_some(&self.stand.tls);
        fresh::ask(self.address, tls, HOST, path, headers)
    }

    /// Gives the policy another edition, and has it loaded.
    pub(crate) fn edit(&self, edition: u64) -> Result<()> {
        let edition = edition.to_string();
        write_files(self.stand, self.contestant, self.workload, &self.dir, self.address, &edition)?;
        if self.contestant.program == Program::Nginx {
            crate::process::signal(self.process.id(), "HUP");
        }
        Ok(())
    }

    fn path(&self) -> String {
        match &self.workload.work {
            Work::Requests(requests) if requests.upload == 0 => requests.path.replace("{n}", "9999"),
            _ => "/".to_owned(),
        }
    }

    fn wait(&self) -> Result<()> {
        let path = self.path();
        let answer = within(START, || match self.process.status() {
            Some(status) => Some(Err(status)),
            // Traefik has no routes until a moment after its start.
            None => self.ask(&path).ok().filter(|reply| reply.status != 404).map(Ok),
        });
        match answer {
            Some(Ok(_)) => Ok(()),
            Some(Err(status)) => Err(log(&format!("ended with {status}"), &self.dir.join("output")).into()),
            None => Err(log("does not answer", &self.dir.join("output")).into()),
        }
    }

    /// What makes the contestants comparable is checked, not believed: status, TLS, what the origin is
    /// told, what a policy does.
    fn check(&self) -> Result<()> {
        let (right, is_spread) = match &self.workload.work {
            Work::Requests(requests) => (requests.status, requests.variety > 0),
            Work::Idle { .. } => (200, false),
        };
        let reply = self.ask(&self.path())?;
        expect("status", &reply.status, &right)?;
        if let Some(session) = &reply.tls {
            expect("TLS", &session.as_str(), &"TLSv1_3 TLS13_AES_256_GCM_SHA384 X25519")?;
        }
        if self.contestant.program == Program::Relay || right != 200 || is_spread {
            return Ok(());
        }
        let proto = if self.is_tls() { "https" } else { "http" };
        let rewrites = self.workload.tags.contains(&"headers");
        let team = if rewrites { "payments" } else { "" };
        let told = format!("127.0.0.1|{proto}|{HOST}|for=127.0.0.1;proto={proto}||{team}|");
        expect("what the origin is told", &self.ask("/told")?.body, &told)?;
        if rewrites {
            expect("HSTS", &reply.header("strict-transport-security"), &Some("max-age=31536000"))?;
            expect("sniffing", &reply.header("x-content-type-options"), &Some("nosniff"))?;
            expect("the origin's header", &reply.header("x-stack"), &None)?;
        }
        if self.workload.tags.contains(&"policy") {
            expect("the policy's header", &reply.header("x-policy"), &Some("passed"))?;
            let tls = self.is_tls().then_some(&self.stand.tls);
            let refused = fresh::ask(self.address, tls, HOST, "/", &[("x-api-key", "wrong")])?;
            expect("status for a wrong key", &refused.status, &403)?;
        }
        Ok(())
    }
}

fn expect<T: PartialEq + std::fmt::Debug>(what: &str, found: &T, right: &T) -> Result<()> {
    match found == right {
        true => Ok(()),
        false => Err(format!("not comparable: {what} is {found:?}, not {right:?}").into()),
    }
}

/// Writes a contestant's files as editors and deployments do: beside their place, then renamed.
fn write_files(
    stand: &Stand,
    contestant: &Contestant,
    workload: &Workload,
    dir: &Path,
    address: SocketAddr,
    edition: &str,
) -> Result<()> {
    let words = vec![
        ("dir", dir.display().to_string()),
        ("tls", stand.dir.path().join("tls").display().to_string()),
        ("guests", guests().display().to_string()),
        ("port", address.port().to_string()),
        ("origin", stand.origin.to_string()),
        ("origin_port", stand.origin.port().to_string()),
        ("workers", stand.workers.to_string()),
        ("edition", edition.to_owned()),
    ];
    let values = Values { tags: [workload.tags, contestant.tags].concat(), words };
    for file in contestant.program.files() {
        let text = render(&template(file)?, &values);
        let path = dir.join(file);
        if fs::read_to_string(&path).is_ok_and(|known| known == text) {
            continue;
        }
        let beside = dir.join(format!(".{file}.new"));
        fs::write(&beside, text)?;
        fs::rename(beside, path)?;
    }
    Ok(())
}
