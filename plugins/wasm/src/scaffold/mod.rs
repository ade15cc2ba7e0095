//! The projects that `portcullis new wasm NAME` writes: a policy, what the gateway offers to it, how to build it.

mod rust;

use std::collections::BTreeMap;
use std::error::Error;

use wit_bindgen_core::Files;
use wit_bindgen_core::wit_parser::Resolve;

/// What the gateway offers, which goes along since a policy has to build wherever the gateway was installed from.
const WIT: &str = include_str!("../../../../plugin-sdk/guest/wit/portcullis-policy.wit");

const WORLD: &str = include_str!("world.wit");
const README: &str = include_str!("README.md");
const TESTS: &str = include_str!("policy.test.yaml");

/// What a policy can be written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Language {
    /// With the SDK for Rust.
    Rust,
    /// With bindings made from the WIT.
    C,
    /// With `componentize-qjs`, from npm.
    Javascript,
    /// With `componentize-py`, from PyPI.
    Python,
    /// With the bindings for C, and Zig from PyPI.
    Zig,
    /// For http-wasm, with Go from PyPI.
    Go,
    /// For http-wasm, with its compiler from npm.
    AssemblyScript,
}

impl Language {
    /// All of them.
    pub const ALL: [Language; 7] = [
        Language::Rust,
        Language::C,
        Language::Javascript,
        Language::Python,
        Language::Zig,
        Language::Go,
        Language::AssemblyScript,
    ];

    /// As it is written on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Language::Rust => "rust",
            Language::C => "c",
            Language::Javascript => "javascript",
            Language::Python => "python",
            Language::Zig => "zig",
            Language::Go => "go",
            Language::AssemblyScript => "assemblyscript",
        }
    }
}

/// A language's own part of a project.
struct Template {
    language: &'static str,
    source: (&'static str, &'static str),
    build: &'static str,
    /// Options of the instance that it does not do without.
    options: &'static [&'static str],
    interface: Interface,
}

/// How a policy and the gateway speak to each other.
enum Interface {
    /// By the WIT, with bindings that the language's tool makes of it.
    Component,
    /// By the WIT, with bindings for C.
    BindingsForC,
    /// By http-wasm, as far as these files go.
    HttpWasm { config: &'static str, files: &'static [(&'static str, &'static str)] },
}

const C: Template = Template {
    language: "C",
    source: ("policy.c", include_str!("policy.c")),
    build: include_str!("c.sh"),
    options: &[],
    interface: Interface::BindingsForC,
};

const JAVASCRIPT: Template = Template {
    language: "JavaScript",
    source: ("policy.js", include_str!("policy.js")),
    build: include_str!("javascript.sh"),
    options: &["cpu: 50ms", "isolation: { reuse: 100 }"],
    interface: Interface::Component,
};

const PYTHON: Template = Template {
    language: "Python",
    source: ("policy.py", include_str!("policy.py")),
    build: include_str!("python.sh"),
    options: &["memory: 64MiB", "cpu: 100ms", "isolation: { reuse: 100 }"],
    interface: Interface::Component,
};

const ZIG: Template = Template {
    language: "Zig",
    source: ("policy.zig", include_str!("policy.zig")),
    build: include_str!("zig.sh"),
    options: &[],
    interface: Interface::BindingsForC,
};

const GO: Template = Template {
    language: "Go",
    source: ("policy.go", include_str!("policy.go")),
    build: include_str!("go.sh"),
    options: &["memory: 64MiB", "cpu: 100ms", "isolation: { reuse: 100 }"],
    interface: Interface::HttpWasm {
        config: GREETING,
        files: &[("host.go", include_str!("host.go")), ("go.mod", include_str!("go.mod.txt"))],
    },
};

const ASSEMBLY_SCRIPT: Template = Template {
    language: "AssemblyScript",
    source: ("policy.ts", include_str!("policy.ts")),
    build: include_str!("assemblyscript.sh"),
    options: &[],
    interface: Interface::HttpWasm { config: "hi", files: &[("host.ts", include_str!("host.ts"))] },
};

const GREETING: &str = "{ greeting: hi }";

impl Interface {
    fn config(&self) -> &'static str {
        match self {
            Interface::HttpWasm { config, .. } => config,
            Interface::Component | Interface::BindingsForC => GREETING,
        }
    }

    /// Why the policy of that name refuses.
    fn reason(&self) -> &'static str {
        match self {
            Interface::HttpWasm { .. } => "wasm.local_response",
            Interface::Component | Interface::BindingsForC => "SNAKE.refused",
        }
    }

    fn told(&self) -> &'static str {
        match self {
            Interface::Component => {
                "Its hooks are named in `wit/world.wit`. What the gateway offers to it is in `wit/deps/portcullis-policy/portcullis-policy.wit`."
            }
            Interface::BindingsForC => {
                "`sdk` is made from `wit` by `wit-bindgen c`. What the gateway offers to it is in `wit/deps/portcullis-policy/portcullis-policy.wit`."
            }
            Interface::HttpWasm { .. } => {
                "It speaks to the gateway by the handler ABI of http-wasm, of which `host` is what it uses."
            }
        }
    }

    fn files(&self) -> Result<Vec<(String, Vec<u8>)>, String> {
        if let Interface::HttpWasm { files, .. } = self {
            return Ok(files.iter().map(|(path, content)| ((*path).to_owned(), (*content).into())).collect());
        }
        let mut files = vec![
            ("wit/world.wit".to_owned(), WORLD.into()),
            ("wit/deps/portcullis-policy/portcullis-policy.wit".to_owned(), WIT.into()),
        ];
        if let Interface::BindingsForC = self {
            let bindings = c_bindings().map_err(|error| format!("no bindings for C: {error}"))?;
            files.extend(bindings.iter().map(|(file, content)| (format!("sdk/{file}"), content.to_owned())));
        }
        Ok(files)
    }
}

/// All files of a new project, by path. `name` is a crate's name: letters, digits, hyphens, underscores.
///
/// # Errors
///
/// If the bindings for C can't be made.
pub fn scaffold(name: &str, language: Language) -> Result<BTreeMap<String, Vec<u8>>, String> {
    match language {
        Language::Rust => Ok(rust::project(name)),
        Language::C => project(name, &C),
        Language::Javascript => project(name, &JAVASCRIPT),
        Language::Python => project(name, &PYTHON),
        Language::Zig => project(name, &ZIG),
        Language::Go => project(name, &GO),
        Language::AssemblyScript => project(name, &ASSEMBLY_SCRIPT),
    }
}

fn project(name: &str, template: &Template) -> Result<BTreeMap<String, Vec<u8>>, String> {
    let (source, policy) = template.source;
    let fill = |text: &str| {
        let options = |before: &str| {
            template.options.iter().map(|option| format!("{before}{option}")).collect::<String>()
        };
        let interface = &template.interface;
        let text = text.replace("LANGUAGE", template.language).replace("CONFIG", interface.config());
        let text = text.replace("OPTION_LINES", &options("\n        ")).replace("OPTIONS", &options(", "));
        let text = text.replace("SOURCE", source).replace("REST", interface.told());
        let text = text.replace("REASON", interface.reason());
        text.replace("NAME", name).replace("SNAKE", &name.replace('-', "_")).into_bytes()
    };
    let mut files = BTreeMap::from([
        (source.to_owned(), fill(policy)),
        ("build.sh".to_owned(), fill(template.build)),
        ("README.md".to_owned(), fill(README)),
        (format!("{name}.test.yaml"), fill(TESTS)),
    ]);
    files.extend(template.interface.files()?);
    Ok(files)
}

fn c_bindings() -> Result<Files, Box<dyn Error>> {
    let mut resolve = Resolve::default();
    resolve.push_str("portcullis-policy.wit", WIT)?;
    let package = resolve.push_str("world.wit", WORLD)?;
    let world = resolve.select_world(&[package], None)?;
    let mut files = Files::default();
    wit_bindgen_c::Opts::default().build().generate(&mut resolve, world, &mut files)?;
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_project_has_its_name_everywhere_and_the_interface_beside_it() {
        for language in Language::ALL {
            let files = scaffold("my-policy", language).unwrap();
            let text = |path: &str| String::from_utf8(files[path].clone()).unwrap();
            assert!(text("build.sh").contains("my-policy.wasm"), "{language:?}");
            assert!(text("README.md").starts_with("# my-policy"), "{language:?}");
            for (path, content) in files.iter().filter(|(path, _)| !path.starts_with("sdk/")) {
                let content = String::from_utf8_lossy(content);
                let unfilled =
                    ["NAME", "SNAKE", "VERSION", "LANGUAGE", "OPTION", "SOURCE", "REST", "CONFIG", "REASON"];
                assert!(!unfilled.iter().any(|word| content.contains(word)), "{language:?}: {path}");
            }
        }
    }
}
