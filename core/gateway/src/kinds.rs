//! Every kind of plugin in this program.

use portcullis_control::Registry;
use portcullis_plugin::Registration;

/// The kinds that run policies others write.
const RUNTIMES: &[Registration] =
    &[Registration::of::<portcullis_rhai::Script>(), Registration::of::<portcullis_wasm::Module>()];

/// All of them.
pub(crate) fn registry() -> Registry {
    Registry::new(&[portcullis_plugins::BUILTIN, RUNTIMES])
}

/// All of them, with the `jwt` that is asked about a token.
pub(crate) fn asking() -> Registry {
    Registry::new(&[portcullis_plugins::ASKING, portcullis_plugins::BUILTIN, RUNTIMES])
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn no_kind_hides_another() {
        let registry = registry();
        let names: Vec<_> = registry.kinds().map(|kind| kind.kind).collect();
        assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len(), "{names:?}");
        assert!(names.contains(&"rhai") && names.contains(&"wasm"), "{names:?}");
    }

    /// What the examples take for granted.
    const FILES: &[(&str, &str)] = &[
        ("lists/blocked.txt", "203.0.113.0/24\n"),
        ("keys.jsonl", "# none yet\n"),
        ("schemas/order.json", r#"{ "type": "object", "properties": { "item": { "type": "string" } } }"#),
        ("scripts/hello.rhai", include_str!("../../../scripts/hello.rhai")),
    ];

    #[test]
    fn every_example_is_a_configuration_that_works() {
        let directory = tempfile::tempdir().unwrap();
        for (name, content) in FILES {
            let path = directory.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
        let registry = registry();
        // A module has to be built first; the suite that builds some loads this example's.
        for kind in registry.kinds().filter(|kind| kind.kind != "wasm") {
            let config = directory.path().join(format!("{}.yaml", kind.kind));
            let route = kind.example.replace('\n', "\n      ");
            let text = format!(
                "listeners: [{{ bind: '127.0.0.1:0' }}]\n\
                 upstreams: {{ authz: {{ endpoints: ['http://127.0.0.1:9'] }}, login: {{ endpoints: ['http://127.0.0.1:9'] }} }}\n\
                 routes:\n  - name: r\n    respond: {{ status: 204 }}\n    plugins:\n      {route}\n"
            );
            std::fs::write(&config, text).unwrap();
            let key = "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=".to_owned();
            let variables = ["SIGNING_KEY", "API_KEY_HASH_KEY", "CSRF_KEY", "PARTNER_SECRET"]
                .map(|name| (name.to_owned(), key.clone()));
            let variables = std::collections::BTreeMap::from(variables);
            if let Err(findings) = portcullis_control::check(&config, &registry, variables) {
                panic!("{}", findings.render(false));
            }
        }
    }
}
