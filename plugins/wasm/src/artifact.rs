//! Compiled modules: made once per content, kept by the gateway's artifact store.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use portcullis_plugin::ArtifactStore;
use wasmtime::component::Component;
use wasmtime::{Engine, Module, Result};

use crate::engine::Engines;

/// The component for every engine, from `store` if it has been compiled before, else from what
/// `component` makes. `digest` identifies the file.
pub(crate) fn compile(
    engines: &Engines,
    digest: &str,
    store: Option<Arc<dyn ArtifactStore>>,
    component: impl FnOnce() -> Result<Vec<u8>>,
) -> Result<Vec<Component>> {
    let Some(first) = engines.lanes.first() else { return Ok(Vec::new()) };
    let key = key(&first.engine, digest);
    let stored = store.as_ref().and_then(|store| store.load(&key));
    if let Some(components) = stored.and_then(|artifact| load(engines, &artifact).ok()) {
        return Ok(components);
    }
    let artifact = first.engine.precompile_component(&component()?)?;
    if let Some(store) = store {
        store.store(&key, &artifact);
    }
    load(engines, &artifact)
}

/// Code of a core module, which runs on every engine.
pub(crate) struct Compiled(Vec<u8>);

impl Compiled {
    #[allow(unsafe_code, reason = "loading machine code is trusting it")]
    pub(crate) fn load_core(&self, engine: &Engine) -> Result<Module> {
        // SAFETY: as below, for what `precompile_module` returned.
        unsafe { Module::deserialize(engine, &self.0) }
    }
}

/// The same for a core module, as it is.
pub(crate) fn compile_core(
    engines: &Engines,
    digest: &str,
    store: Option<Arc<dyn ArtifactStore>>,
    module: &[u8],
) -> Result<Compiled> {
    let Some(first) = engines.lanes.first() else { return Ok(Compiled(Vec::new())) };
    let key = format!("core-{}", key(&first.engine, digest));
    let stored = store.as_ref().and_then(|store| store.load(&key)).map(Compiled);
    if let Some(compiled) = stored.filter(|compiled| compiled.load_core(&first.engine).is_ok()) {
        return Ok(compiled);
    }
    let artifact = first.engine.precompile_module(module)?;
    if let Some(store) = store {
        store.store(&key, &artifact);
    }
    Ok(Compiled(artifact))
}

/// Names what was compiled and for what: the file, the engine's version and settings, the CPU.
fn key(engine: &Engine, digest: &str) -> String {
    let mut hasher = DefaultHasher::new();
    engine.precompile_compatibility_hash().hash(&mut hasher);
    // The step from core module to component is this crate's.
    env!("CARGO_PKG_VERSION").hash(&mut hasher);
    format!("wasm-{digest}-{:016x}", hasher.finish())
}

#[allow(unsafe_code, reason = "loading machine code is trusting it")]
fn load(engines: &Engines, artifact: &[u8]) -> Result<Vec<Component>> {
    // SAFETY: `artifact` is what `precompile_component` returned, either just now or when it was
    // stored: an `ArtifactStore` returns exactly what this installation stored under the key, and
    // counts anything tampered with as absent. Engine version, settings and CPU are checked.
    let component = |engine| unsafe { Component::deserialize(engine, artifact) };
    engines.lanes.iter().map(|lane| component(&lane.engine)).collect()
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::collections::HashMap;
    use std::sync::Mutex;

    use super::*;

    #[derive(Default)]
    struct Memory(Mutex<HashMap<String, Vec<u8>>>);

    impl ArtifactStore for Memory {
        fn load(&self, key: &str) -> Option<Vec<u8>> {
            self.0.lock().unwrap().get(key).cloned()
        }

        fn store(&self, key: &str, artifact: &[u8]) {
            self.0.lock().unwrap().insert(key.to_owned(), artifact.to_owned());
        }
    }

    #[test]
    fn a_module_is_compiled_once_per_content() {
        let engines = Engines::with(1, 1).unwrap();
        let store = Arc::new(Memory::default());
        let compiled = Cell::new(0);
        let compile = |digest: &str| {
            let made = compile(&engines, digest, Some(store.clone()), || {
                compiled.set(compiled.get() + 1);
                Ok(wat::parse_str("(component)").unwrap())
            });
            assert_eq!(made.unwrap().len(), engines.lanes.len());
        };
        compile("one");
        compile("one");
        compile("two");
        assert_eq!((compiled.get(), store.0.lock().unwrap().len()), (2, 2));
    }

    #[test]
    fn an_artifact_of_another_engine_is_made_anew() {
        let engines = Engines::with(1, 1).unwrap();
        let store = Arc::new(Memory::default());
        store.store(&key(&engines.lanes[0].engine, "one"), b"of another version");
        let component = || Ok(wat::parse_str("(component)").unwrap());
        assert!(compile(&engines, "one", Some(store), component).is_ok());
    }
}
