//! Wasm modules as plugins.
