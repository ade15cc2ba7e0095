//! What all plugins of a configuration are built with: the store, and whose code runs.

use std::sync::Arc;

use super::Builder;
use crate::host::{Host, Surroundings};
use crate::store::{self, OpenStore, StorePlan};
use crate::trust::Trust;

impl Builder<'_> {
    /// The configured store. After an error the one in memory: the plugins' own errors are to be seen too.
    pub(super) fn store(&mut self) -> Arc<OpenStore> {
        let config = &self.loaded.config.store;
        let memory = self.services.stores.memory();
        let surroundings =
            Surroundings { kind: "", generation: 1, is_shadow: false, store: &memory, trust: None };
        let mut host = Host::new(self.services, &self.dir, self.files, &[], surroundings);
        let plan = store::plan(config, &self.dir, &mut host);
        let opened = plan.and_then(|plan| {
            // What is not going to run must not touch anything.
            let plan = if self.findings.has_errors() { StorePlan::Memory } else { plan };
            self.services.stores.open(&plan).map_err(|message| ("store", message))
        });
        opened.unwrap_or_else(|(path, message)| {
            self.error(path, message);
            memory
        })
    }

    /// Whose code runs; none if everybody's does.
    pub(super) fn trust(&mut self) -> Option<Trust> {
        let config = self.loaded.config.trust.as_ref()?;
        let registry = &self.services.registry;
        match Trust::new(config, &|kind| registry.runner(kind).is_some()) {
            Ok(trust) => Some(trust),
            Err(errors) => {
                errors.into_iter().for_each(|(path, message)| self.error(&path, message));
                // The configuration is refused; without keys nothing is missed on the way.
                None
            }
        }
    }
}
