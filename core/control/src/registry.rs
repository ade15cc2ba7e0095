//! The kinds of plugins this gateway knows.

use std::path::Path;

use portcullis_config::nearest;
use portcullis_plugin::Registration;

/// The kinds of plugins, in the order of the lists they came from.
#[derive(Clone)]
pub struct Registry {
    kinds: Vec<&'static Registration>,
}

impl Registry {
    /// All kinds of these lists. Of two with one name the first counts.
    pub fn new(lists: &[&'static [Registration]]) -> Self {
        Registry { kinds: lists.iter().flat_map(|list| list.iter()).collect() }
    }

    /// Every kind.
    pub fn kinds(&self) -> impl Iterator<Item = &'static Registration> + '_ {
        self.kinds.iter().copied()
    }

    /// The kind of this name.
    pub fn find(&self, kind: &str) -> Option<&'static Registration> {
        self.kinds().find(|registration| registration.kind == kind)
    }

    /// Advice on a kind that does not exist.
    pub(crate) fn suggest(&self, kind: &str) -> String {
        match nearest(kind, self.kinds().map(|registration| registration.kind)) {
            Some(near) => format!("did you mean `{near}`?"),
            None => "`portcullis plugins` lists every kind".to_owned(),
        }
    }

    /// The kind that runs files with this ending: the one of the same name, if its table needs
    /// a `file`.
    pub(crate) fn runner(&self, ending: &str) -> Option<&'static Registration> {
        self.find(ending).filter(|registration| runs_files(registration))
    }

    /// The kind that would run a file, by its ending.
    pub(crate) fn runner_of(&self, path: &Path) -> Option<&'static Registration> {
        self.runner(path.extension().and_then(|ending| ending.to_str())?)
    }

    /// The endings of files that may stand in a policy directory, for messages.
    pub(crate) fn endings(&self) -> String {
        let endings: Vec<_> = self
            .kinds()
            .filter(|registration| runs_files(registration))
            .map(|registration| format!("`.{}`", registration.kind))
            .collect();
        endings.join(" or ")
    }
}

fn runs_files(registration: &Registration) -> bool {
    let schema = (registration.schema)();
    let required = schema.get("required").and_then(|required| required.as_array());
    required.is_some_and(|required| required.iter().any(|key| key == "file"))
}

#[cfg(test)]
mod tests {
    use crate::testing::KINDS;

    use super::*;

    #[test]
    fn a_kind_is_found_by_its_name_and_suggested_for_a_similar_one() {
        let registry = Registry::new(&[KINDS]);
        assert_eq!(registry.find("stamp").map(|found| found.kind), Some("stamp"));
        assert!(registry.find("stmap").is_none());
        assert_eq!(registry.suggest("stmap"), "did you mean `stamp`?");
        assert!(registry.suggest("something else").contains("portcullis plugins"));
    }

    #[test]
    fn only_kinds_that_need_a_file_run_policies() {
        let registry = Registry::new(&[KINDS]);
        assert!(registry.runner("script").is_some() && registry.runner("stamp").is_none());
        assert_eq!(registry.endings(), "`.script`");
    }
}
