//! SDK for policies compiled to Wasm.
