//! A project in Rust: a policy, the SDK beside it, how to build it.

use std::collections::BTreeMap;

/// The SDK, which goes along since a policy has to build wherever the gateway was installed from.
const SDK: [(&str, &str); 7] = [
    ("sdk/src/lib.rs", include_str!("../../../../plugin-sdk/guest/src/lib.rs")),
    ("sdk/src/bindings.rs", include_str!("../../../../plugin-sdk/guest/src/bindings.rs")),
    ("sdk/src/capabilities.rs", include_str!("../../../../plugin-sdk/guest/src/capabilities.rs")),
    ("sdk/src/config.rs", include_str!("../../../../plugin-sdk/guest/src/config.rs")),
    ("sdk/src/exchange.rs", include_str!("../../../../plugin-sdk/guest/src/exchange.rs")),
    ("sdk/src/export.rs", include_str!("../../../../plugin-sdk/guest/src/export.rs")),
    ("sdk/wit/portcullis-policy.wit", include_str!("../../../../plugin-sdk/guest/wit/portcullis-policy.wit")),
];

const SDK_MANIFEST: &str = r#"[package]
name = "portcullis-guest"
description = "SDK for policies compiled to Wasm."
version = "VERSION"
edition = "2024"
publish = false

[dependencies]
serde = { version = "1.0", features = ["derive"] }
serde_json = { version = "1.0", features = ["preserve_order"] }
wit-bindgen = { version = "0.61.1", default-features = false, features = ["macros", "realloc"] }
"#;

const MANIFEST: &str = r#"[package]
name = "NAME"
version = "0.1.0"
edition = "2024"
publish = false

[lib]
crate-type = ["cdylib"]

[dependencies]
portcullis-guest = { path = "sdk" }
serde = { version = "1.0", features = ["derive"] }

[profile.release]
opt-level = "s"
lto = true
codegen-units = 1
panic = "abort"
strip = "debuginfo"

[workspace]
"#;

const BUILD_SCRIPT: &str = include_str!("../../../../plugin-sdk/guest/examples/block-path/build.rs");

const TESTS: &str = include_str!("rust.test.yaml");

const POLICY: &str = r#"//! Refuses requests for a path and for what lies below it.

use portcullis_guest::*;

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    #[serde(default = "internal")]
    prefix: String,
}

fn internal() -> String {
    "/internal".to_owned()
}

struct Block(Config);

impl Policy for Block {
    type Config = Config;

    fn new(config: Config) -> Result<Self> {
        Ok(Block(config))
    }

    fn on_request(&mut self, exchange: &Exchange) -> Result<Verdict> {
        if exchange.request().is_below(&self.0.prefix) {
            return deny(403, "SNAKE.prefix");
        }
        proceed()
    }
}

export!(Block: on_request);
"#;

const BUILD: &str = r#"#!/bin/sh
# Builds NAME.wasm.
set -eu
cd "$(dirname "$0")"

target=wasm32-unknown-unknown
own=$(rustc --print sysroot)
if [ -d "$own/lib/rustlib/$target/lib" ]; then
    cargo build --release --target "$target"
elif [ -d "$(/usr/bin/rustc --print sysroot 2>/dev/null)/lib/rustlib/src/rust/library" ]; then
    # The distribution's compiler builds the standard library too, from its sources.
    host=$(rustc -vV | sed -n 's/^host: //p')
    export CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER="$own/lib/rustlib/$host/bin/rust-lld"
    RUSTC=/usr/bin/rustc RUSTC_BOOTSTRAP=1 cargo build --release --target "$target" -Zbuild-std=std,panic_abort
else
    echo "no Rust here makes WebAssembly: run \`rustup target add $target\`" >&2
    echo "or, on Debian and Ubuntu, \`apt-get install rustc-web rust-web-src\`" >&2
    exit 3
fi
cp "target/$target/release/SNAKE.wasm" NAME.wasm
"#;

const README: &str = r#"# NAME

A policy for Portcullis, compiled to WebAssembly.

    sh build.sh

makes `NAME.wasm`. That takes a Rust that makes WebAssembly: one from rustup, once
`rustup target add wasm32-unknown-unknown`; or, on Debian and Ubuntu, the packages `rustc-web` and
`rust-web-src` beside it. `portcullis test NAME.test.yaml` runs its tests.

Copy it into the policy directory as `50-NAME.wasm`, with `config: { prefix: /secret }` in
`50-NAME.yaml` beside it if the default is not what you want; or name it in a chain:

    - wasm:
        file: NAME.wasm
        config: { prefix: /internal }

The hooks and what they can do: `sdk/src/lib.rs`. For other languages: `sdk/wit/portcullis-policy.wit`.
"#;

/// All files of a project in Rust, by path.
pub(super) fn project(name: &str) -> BTreeMap<String, Vec<u8>> {
    let fill = |text: &str| {
        let text = text.replace("NAME", name).replace("SNAKE", &name.replace('-', "_"));
        text.replace("VERSION", env!("CARGO_PKG_VERSION")).into_bytes()
    };
    let own = [
        ("Cargo.toml", MANIFEST),
        ("build.rs", BUILD_SCRIPT),
        ("src/lib.rs", POLICY),
        ("build.sh", BUILD),
        ("README.md", README),
        ("sdk/Cargo.toml", SDK_MANIFEST),
    ];
    let own = own.into_iter().map(|(path, text)| (path.to_owned(), fill(text)));
    let tests = (format!("{name}.test.yaml"), fill(TESTS));
    own.chain([tests]).chain(SDK.into_iter().map(|(path, text)| (path.to_owned(), text.into()))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_project_has_its_name_where_it_matters() {
        let files = project("my-policy");
        let file = |path: &str| String::from_utf8(files[path].clone()).unwrap();
        assert!(file("Cargo.toml").contains("name = \"my-policy\""));
        assert!(file("build.rs").contains("stack-size"));
        assert!(file("build.sh").contains("release/my_policy.wasm\" my-policy.wasm"));
        assert!(file("src/lib.rs").contains("\"my_policy.prefix\""));
    }

    /// What is vendored builds with the dependencies it was written for.
    #[test]
    fn the_vendored_sdk_asks_for_what_the_real_one_does() {
        let workspace = include_str!("../../../../Cargo.toml");
        let line = SDK_MANIFEST.lines().find(|line| line.starts_with("wit-bindgen")).unwrap();
        assert!(workspace.contains(line), "{line}");
        let sdk = include_str!("../../../../plugin-sdk/guest/src/lib.rs");
        let declares =
            |line: &&str| line.trim_start_matches("pub ").starts_with("mod ") && line.ends_with(';');
        let modules = sdk.lines().filter(declares);
        assert_eq!(modules.count() + 1, SDK.iter().filter(|(path, _)| path.ends_with(".rs")).count());
    }
}
