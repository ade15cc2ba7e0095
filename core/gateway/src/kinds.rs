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
}
