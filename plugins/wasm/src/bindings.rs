//! What the WIT says, as Rust: the traits that [`Host`](crate::host::Host) implements, and the types.
#![allow(missing_docs, unreachable_pub, clippy::all, reason = "generated")]

wasmtime::component::bindgen!({
    path: "../../plugin-sdk/guest/wit",
    world: "imports",
    imports: {
        "portcullis:policy/http.send": async | trappable,
        "portcullis:policy/store": async | trappable,
        default: trappable },
});

pub use portcullis::policy::{
    cache, clock, exchange, host, http, metrics, random, rate_limit, secrets, store, types,
};
