//! Plugin kinds and files for tests.

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use http::StatusCode;
use portcullis_plugin::{
    BuildContext, BuildError, Clock, Decision, Exchange, Hook, HookName, LogSink, LogSinks, Needs, Offload,
    Plugin, PluginError, PluginType, Registration, Reply, SourcePosition, StateKey,
};
use portcullis_proxy::body::Budget;
use portcullis_proxy::metrics::Metrics;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::build::{Built, Failed, build};
use crate::gate::Tested;
use crate::host::{Services, Surroundings};
use crate::offload::Pool;
use crate::registry::Registry;
use crate::state::StateStore;
use crate::store::{OpenStore, Stores};

/// A kind with a plain table, one that runs files, and one that computes elsewhere.
pub(crate) const KINDS: &[Registration] =
    &[Registration::of::<Stamp>(), Registration::of::<Script>(), Registration::of::<Gated>()];

/// Does what its table says; counts its builds.
pub(crate) struct Stamp(StampConfig);

#[derive(Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct StampConfig {
    refuse: Option<String>,
    remark: bool,
    panic: bool,
    connections: bool,
    upstream: Option<String>,
    list: Option<String>,
    write: Option<String>,
    log: Option<String>,
}

impl Plugin for Stamp {
    fn needs(&self) -> Needs {
        let needs = Needs::hooks([HookName::OnLog]);
        if self.0.connections { needs.and(HookName::OnConnection) } else { needs }
    }
}

impl PluginType for Stamp {
    const KIND: &'static str = "stamp";
    const SUMMARY: &'static str = "does what it is told while it is built";
    const EXAMPLE: &'static str = "stamp: {}";
    type Config = StampConfig;

    fn build(config: StampConfig, context: &mut BuildContext<'_>) -> Result<Self, BuildError> {
        count(context);
        assert!(!config.panic, "told to");
        if let Some(refusal) = &config.refuse {
            return Err(BuildError::at("refuse", refusal.clone()).help("say nothing"));
        }
        if config.remark {
            context.warn("remark", "odd");
            context.notice("remark", "odd at first");
        }
        if let Some(name) = &config.upstream {
            context.upstream("upstream", name)?;
        }
        if let Some(log) = &config.log {
            context.log_sink("log", log)?;
        }
        if let Some(list) = &config.list {
            let file = context.data_file("list", list)?;
            if let Some(text) = &config.write {
                std::fs::write(file.path, text).unwrap();
            }
        }
        Ok(Stamp(config))
    }
}

/// Answers with its file's text; `!` in it is a syntax error.
pub(crate) struct Script(String);

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ScriptConfig {
    file: String,
    #[serde(default)]
    prefix: String,
}

impl Plugin for Script {
    fn needs(&self) -> Needs {
        Needs::hooks([HookName::OnRequest])
    }

    fn on_request<'a>(&'a self, _: &'a mut Exchange) -> Hook<'a> {
        Hook::respond(Reply::new(StatusCode::OK).body("text/plain", self.0.clone()))
    }
}

impl PluginType for Script {
    const KIND: &'static str = "script";
    const SUMMARY: &'static str = "answers with its file's text";
    const EXAMPLE: &'static str = "script: { file: hello.script }";
    type Config = ScriptConfig;

    fn build(config: ScriptConfig, context: &mut BuildContext<'_>) -> Result<Self, BuildError> {
        count(context);
        let source = context.file("file", &config.file)?;
        let text = source.text().map_err(|message| BuildError::at("file", message))?;
        for (line, content) in text.lines().enumerate() {
            if let Some(column) = content.find('!') {
                let position = SourcePosition {
                    file: source.path.clone(),
                    text: text.into(),
                    line: line + 1,
                    column: column + 1,
                };
                return Err(BuildError::at("file", "unexpected `!`").within(position));
            }
        }
        Ok(Script(format!("{}{text}", config.prefix)))
    }
}

/// Lets requests for `/gated` wait for work on another thread, which is done when a socket says so.
pub(crate) struct Gated {
    gate: PathBuf,
    offload: Offload,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct GatedConfig {
    gate: PathBuf,
}

impl Plugin for Gated {
    fn needs(&self) -> Needs {
        Needs::hooks([HookName::OnRequest])
    }

    fn on_request<'a>(&'a self, exchange: &'a mut Exchange) -> Hook<'a> {
        if exchange.request().path() != "/gated" {
            return Hook::CONTINUE;
        }
        let gate = self.gate.clone();
        let work = self.offload.run(move || UnixStream::connect(gate)?.read(&mut [0]));
        Hook::Wait(Box::pin(async move {
            work.await?.map_err(|error| PluginError::failed(error.to_string()))?;
            Ok(Decision::Continue)
        }))
    }
}

impl PluginType for Gated {
    const KIND: &'static str = "gated";
    const SUMMARY: &'static str = "works elsewhere until told";
    const EXAMPLE: &'static str = "gated: { gate: /run/gate }";
    type Config = GatedConfig;

    fn build(config: GatedConfig, context: &mut BuildContext<'_>) -> Result<Self, BuildError> {
        Ok(Gated { gate: config.gate, offload: context.offload() })
    }
}

fn count(context: &mut BuildContext<'_>) {
    context.shared_by_kind(|| AtomicU32::new(0)).fetch_add(1, Ordering::Relaxed);
    context.shared(|| AtomicU32::new(0)).fetch_add(1, Ordering::Relaxed);
}

/// How often instances of a kind were built with these services; with a name, that instance.
pub(crate) fn builds(services: &Services, kind: &'static str, name: &str) -> u32 {
    let key = StateKey { kind, name: name.into(), schema: 0 };
    let state = services.state.shared(key, &mut || Arc::new(AtomicU32::new(0)));
    state.downcast::<AtomicU32>().unwrap().load(Ordering::Relaxed)
}

/// Services of a test's own; the one variable is `GIVEN`.
pub(crate) fn services() -> Services {
    Services {
        registry: Registry::new(&[KINDS]),
        state: StateStore::default(),
        stores: Stores::isolated(Metrics::new(1).store),
        artifacts: None,
        sinks: Arc::new(NoSinks),
        metrics: Arc::new(Metrics::new(1)),
        budget: Budget::new(0),
        cpu: Arc::new(Pool::with("offload", 1, 1)),
        scripts: Arc::new(Pool::for_scripts()),
        env: Arc::new(|name| (name == "GIVEN").then(|| "given".to_owned())),
        clock: Clock::default(),
        coverage: None,
        tested: Tested::default(),
        stage: None,
    }
}

pub(crate) struct NoSinks;

impl LogSinks for NoSinks {
    fn open(&self, target: &str) -> Result<Arc<dyn LogSink>, String> {
        Err(format!("no sink for `{target}`"))
    }
}

/// A directory with a configuration.
pub(crate) struct Site {
    _dir: tempfile::TempDir,
    pub(crate) root: PathBuf,
}

impl Site {
    /// A site whose `portcullis.yaml` is `config` after a listener at a free port, with an empty directory
    /// `policies`.
    pub(crate) fn new(config: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let site = Site { _dir: dir, root };
        std::fs::create_dir(site.path("policies")).unwrap();
        site.configure(config);
        site
    }

    /// Replaces the configuration.
    pub(crate) fn configure(&self, config: &str) {
        let listener = "admin: off\nlisteners: [{ name: web, bind: 127.0.0.1:0 }]\n";
        self.write("portcullis.yaml", &format!("{listener}{config}"));
    }

    /// Writes a file as an editor does: beside it, then renamed.
    pub(crate) fn write(&self, path: &str, content: &str) {
        let path = self.path(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let temporary = path.with_extension("tmp");
        std::fs::write(&temporary, content).unwrap();
        std::fs::rename(temporary, path).unwrap();
    }

    pub(crate) fn remove(&self, path: &str) {
        std::fs::remove_file(self.path(path)).unwrap();
    }

    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.path("portcullis.yaml")
    }

    pub(crate) fn build(&self, services: &Services, running: Option<&Built>) -> Result<Built, String> {
        build(&self.config(), services, running, None).map_err(|failed| self.rendered(&failed))
    }

    /// What a failed build says, with the site's directory left out.
    fn rendered(&self, failed: &Failed) -> String {
        self.relative(&failed.findings.render(false))
    }

    pub(crate) fn relative(&self, text: &str) -> String {
        text.replace(&format!("{}/", self.root.display()), "")
    }
}

/// Names of a generation's instances, in order.
pub(crate) fn names(built: &Built) -> Vec<&str> {
    built.plugins.iter().map(|plugin| &*plugin.instance.name).collect()
}

/// What an instance is built with in most tests.
pub(crate) fn surroundings(memory: &Arc<OpenStore>) -> Surroundings<'_> {
    Surroundings { kind: "", generation: 1, is_shadow: false, store: memory, trust: None }
}
