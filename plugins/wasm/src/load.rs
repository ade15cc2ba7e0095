//! From a file's bytes to something that can be instantiated, or to an error that says what the
//! file is and what to do about it.

use std::fmt::Write;
use std::sync::Arc;

use aws_lc_rs::digest;
use portcullis_plugin::{ArtifactStore, BuildError, HookName, block_on};
use wasi_preview1_component_adapter_provider::WASI_SNAPSHOT_PREVIEW1_REACTOR_ADAPTER;
use wasmtime::component::{Component, ComponentExportIndex, HasSelf, InstancePre, Linker};
use wasmtime::{Engine, Error, ensure};
use wit_component::ComponentEncoder;

use crate::artifact;
use crate::bindings::Imports;
use crate::engine::{Engines, Lane};
use crate::host::{About, Host};
use crate::snapshot::snapshot;
use crate::wasi2;

/// The version of the WIT package that this gateway offers and calls.
const VERSION: &str = "0.1.0";

/// The interfaces of that package that a policy may import.
const OFFERED: [&str; 11] = [
    "types",
    "exchange",
    "host",
    "http",
    "cache",
    "store",
    "rate-limit",
    "metrics",
    "clock",
    "random",
    "secrets",
];

/// How a file begins that is a core module.
const CORE_MODULE: &[u8] = b"\0asm\x01\0\0\0";

/// What a core module's component type is stored under.
const COMPONENT_TYPE: &[u8] = b"component-type";

/// What core modules import that were made for the first version of WASI; an adapter makes 0.2 of it.
const PREVIEW1: &str = "wasi_snapshot_preview1";

const BUILD_WITH_SDK: &str =
    "build it with the portcullis-guest SDK: `portcullis new wasm NAME` writes a project";

/// A component, ready to be instantiated on one lane.
pub(crate) struct Prepared {
    pub(crate) lane: Arc<Lane>,
    pub(crate) pre: InstancePre<Host>,
    pub(crate) exports: Exports,
}

/// What a component exports.
pub(crate) struct Exports {
    hooks: [Option<ComponentExportIndex>; HookName::ALL.len()],
    /// None also if instances begin configured.
    pub(crate) configure: Option<ComponentExportIndex>,
}

impl Exports {
    pub(crate) fn hook(&self, hook: HookName) -> Option<&ComponentExportIndex> {
        self.hooks.get(hook as usize)?.as_ref()
    }

    pub(crate) fn hooks(&self) -> impl DoubleEndedIterator<Item = HookName> {
        HookName::ALL.into_iter().filter(|hook| self.hook(*hook).is_some())
    }

    fn of(component: &Component) -> Self {
        let find = |name: &str, function: &str| {
            let interface = component.get_export_index(None, &*interface(name))?;
            component.get_export_index(Some(&interface), function)
        };
        let hook = |hook: HookName| {
            let name = hook.as_str().replace('_', "-");
            find(&name, &name)
        };
        Exports { hooks: HookName::ALL.map(hook), configure: find("configuration", "configure") }
    }
}

/// An interface's full name.
pub(crate) fn interface(name: &str) -> String {
    format!("portcullis:policy/{name}@{VERSION}")
}

/// The module in `bytes` on every lane.
pub(crate) fn load(
    engines: &Engines,
    bytes: &[u8],
    store: Option<Arc<dyn ArtifactStore>>,
) -> Result<Vec<Prepared>, BuildError> {
    let component = || componentise(bytes).map_err(wasmtime::Error::from);
    let components = artifact::compile(engines, &sha256(bytes), store, component).map_err(|error| {
        error.downcast::<BuildError>().unwrap_or_else(|error| invalid(&format!("{error:#}")))
    })?;
    engines.lanes.iter().zip(components).map(|(lane, component)| prepare(lane, &component)).collect()
}

/// The core module in `bytes` in the state in which `configure` leaves it, on every lane. The error is
/// for whoever wonders why not: what [`load`] gives does the same, each time anew. It is not kept on disk:
/// its memory holds the configuration, and with that whatever came from the environment.
pub(crate) fn configured(about: &Arc<About>, bytes: &[u8], budget: u32) -> wasmtime::Result<Vec<Prepared>> {
    ensure!(bytes.starts_with(CORE_MODULE), "not a core module");
    let lanes = &about.engines.lanes;
    // Beyond the pool, in which each place may be taken.
    let spare = lanes.last().ok_or_else(|| Error::msg("no lane"))?;
    let component = || {
        let module = block_on(snapshot(&spare.engine, bytes, about, budget))?;
        Ok(componentise(&module)?)
    };
    let digest = sha256(&[sha256(bytes).as_bytes(), about.config.as_bytes()].concat());
    let components = artifact::compile(&about.engines, &digest, None, component)?;
    let prepared = lanes.iter().zip(components).map(|(lane, component)| {
        let mut prepared = prepare(lane, &component)?;
        prepared.exports.configure = None;
        Ok(prepared)
    });
    Ok(prepared.collect::<Result<_, BuildError>>()?)
}

fn prepare(lane: &Arc<Lane>, component: &Component) -> Result<Prepared, BuildError> {
    check_imports(&lane.engine, component)?;
    let exports = Exports::of(component);
    if exports.hooks().next().is_none() {
        return Err(no_hooks(&lane.engine, component));
    }
    let mut linker = Linker::new(&lane.engine);
    let has_wasi = component.component_type().imports(&lane.engine).any(|(name, _)| wasi2::offers(name));
    let pre = Imports::add_to_linker::<Host, HasSelf<Host>>(&mut linker, |host| host)
        .and_then(|()| if has_wasi { wasi2::link(&mut linker) } else { Ok(()) })
        .and_then(|()| linker.instantiate_pre(component))
        .map_err(|error| invalid(&format!("{error:#}")))?;
    Ok(Prepared { lane: lane.clone(), pre, exports })
}

fn invalid(reason: &str) -> BuildError {
    BuildError::at("file", format!("not a module that can run here: {reason}"))
}

/// A component as it is; a core module with a component type in the wrapping that the type asks for.
pub(crate) fn componentise(bytes: &[u8]) -> Result<Vec<u8>, BuildError> {
    match bytes {
        [b'\0', b'a', b's', b'm', 0x0d, 0, 1, 0, ..] => Ok(bytes.to_vec()),
        _ if bytes.starts_with(CORE_MODULE) => wrap(bytes),
        [b'\0', b'a', b's', b'm', ..] => {
            Err(BuildError::at("file", "WebAssembly of a version that is neither a module nor a component"))
        }
        [] => Err(BuildError::at("file", "the file is empty")),
        _ => {
            let begin = bytes.get(..bytes.len().min(4)).unwrap_or_default().escape_ascii();
            let message = format!("not WebAssembly: begins with `{begin}`");
            Err(BuildError::at("file", message).help("a .wasm file begins with `\\0asm`"))
        }
    }
}

fn wrap(module: &[u8]) -> Result<Vec<u8>, BuildError> {
    if !module.windows(COMPONENT_TYPE.len()).any(|window| window == COMPONENT_TYPE) {
        return Err(BuildError::at("file", "a core module without component type").help(BUILD_WITH_SDK));
    }
    let encoded = ComponentEncoder::default()
        .validate(true)
        .module(module)
        .and_then(|encoder| encoder.adapter(PREVIEW1, WASI_SNAPSHOT_PREVIEW1_REACTOR_ADAPTER))
        .and_then(|mut encoder| encoder.encode());
    encoded.map_err(|error| invalid(&format!("{error:#}")))
}

fn check_imports(engine: &Engine, component: &Component) -> Result<(), BuildError> {
    let offered = OFFERED.map(interface);
    let ty = component.component_type();
    let missing: Vec<_> = ty
        .imports(engine)
        .map(|(name, _)| name)
        .filter(|name| !wasi2::offers(name) && !offered.iter().any(|known| known == name))
        .collect();
    let Some(first) = missing.first() else { return Ok(()) };
    let message = format!("imports what no policy can have: `{}`", missing.join("`, `"));
    Err(BuildError::at("file", message).help(advice(first)))
}

fn advice(import: &str) -> String {
    if import.starts_with("wasi:http/") {
        format!("a policy calls upstreams by way of `{}`, as far as `grants.http` lets it", interface("http"))
    } else if import.starts_with("wasi:") {
        "of WASI a policy has version 0.2, without `wasi:http`".into()
    } else if import.starts_with("portcullis:policy/") {
        format!("this gateway offers portcullis:policy@{VERSION}: build it with the SDK of that version")
    } else {
        BUILD_WITH_SDK.into()
    }
}

fn no_hooks(engine: &Engine, component: &Component) -> BuildError {
    let ty = component.component_type();
    let exports: Vec<_> = ty.exports(engine).map(|(name, _)| name).collect();
    let found = if exports.is_empty() { "nothing".into() } else { format!("`{}`", exports.join("`, `")) };
    BuildError::at("file", format!("exports no hook, but {found}"))
        .help(format!("a policy exports interfaces such as `{}`", interface("on-request")))
}

/// The content's SHA-256 in hex.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    digest::digest(&digest::SHA256, bytes).as_ref().iter().fold(String::new(), |mut hex, byte| {
        // Writing to a string can't fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}
