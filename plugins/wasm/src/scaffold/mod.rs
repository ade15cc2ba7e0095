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
}

impl Language {
    /// All of them.
    pub const ALL: [Language; 5] =
        [Language::Rust, Language::C, Language::Javascript, Language::Python, Language::Zig];

    /// As it is written on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Language::Rust => "rust",
            Language::C => "c",
            Language::Javascript => "javascript",
            Language::Python => "python",
            Language::Zig => "zig",
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
    rest: &'static str,
    has_c_bindings: bool,
}

const EDITABLE: &str = "Its hooks are named in `wit/world.wit`.";
const GENERATED: &str = "`sdk` is made from `wit` by `wit-bindgen c`.";

const C: Template = Template {
    language: "C",
    source: ("policy.c", include_str!("policy.c")),
    build: include_str!("c.sh"),
    options: &[],
    rest: GENERATED,
    has_c_bindings: true,
};

const JAVASCRIPT: Template = Template {
    language: "JavaScript",
    source: ("policy.js", include_str!("policy.js")),
    build: include_str!("javascript.sh"),
    options: &["cpu: 50ms", "isolation: { reuse: 100 }"],
    rest: EDITABLE,
    has_c_bindings: false,
};

const PYTHON: Template = Template {
    language: "Python",
    source: ("policy.py", include_str!("policy.py")),
    build: include_str!("python.sh"),
    options: &["memory: 64MiB", "cpu: 100ms", "isolation: { reuse: 100 }"],
    rest: EDITABLE,
    has_c_bindings: false,
};

const ZIG: Template = Template {
    language: "Zig",
    source: ("policy.zig", include_str!("policy.zig")),
    build: include_str!("zig.sh"),
    options: &[],
    rest: GENERATED,
    has_c_bindings: true,
};

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
    }
}

fn project(name: &str, template: &Template) -> Result<BTreeMap<String, Vec<u8>>, String> {
    let (source, policy) = template.source;
    let fill = |text: &str| {
        let options = |before: &str| {
            template.options.iter().map(|option| format!("{before}{option}")).collect::<String>()
        };
        let text = text.replace("LANGUAGE", template.language);
        let text = text.replace("OPTION_LINES", &options("\n        ")).replace("OPTIONS", &options(", "));
        let text = text.replace("SOURCE", source).replace("REST", template.rest);
        text.replace("NAME", name).replace("SNAKE", &name.replace('-', "_")).into_bytes()
    };
    let mut files = BTreeMap::from([
        (source.to_owned(), fill(policy)),
        ("build.sh".to_owned(), fill(template.build)),
        ("README.md".to_owned(), fill(README)),
        (format!("{name}.test.yaml"), fill(TESTS)),
        ("wit/world.wit".to_owned(), WORLD.into()),
        ("wit/deps/portcullis-policy/portcullis-policy.wit".to_owned(), WIT.into()),
    ]);
    if template.has_c_bindings {
        let bindings = c_bindings().map_err(|error| format!("no bindings for C: {error}"))?;
        let bindings = bindings.iter().map(|(file, content)| (format!("sdk/{file}"), content.to_owned()));
        files.extend(bindings);
    }
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
                let unfilled = ["NAME", "SNAKE", "VERSION", "LANGUAGE", "OPTION", "SOURCE", "REST"];
                assert!(!unfilled.iter().any(|word| content.contains(word)), "{language:?}: {path}");
            }
        }
    }
}
