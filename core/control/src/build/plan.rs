//! Which plugin instances there are to be, under which names and where.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use portcullis_config::{ChainEntry, Diagnostic, InstanceOptions, Node, NodeError, PluginEntry, Source};
use portcullis_plugin::{Ceiling, Registration};

use super::Builder;
use crate::rehearsal::{PROPS, REGISTRATION};

/// What a chain can index.
const LONGEST_CHAIN: usize = u16::MAX as usize;

/// The list that an instance stands in.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Scope {
    /// The gateway's, with the policy directory's segment.
    Gateway,
    /// A listener's.
    Listener(Arc<str>),
    /// A route's.
    Route(Arc<str>),
}

/// An instance that is to be built.
pub(crate) struct Planned {
    pub(crate) registration: &'static Registration,
    /// Unique in the process: metrics, state and reuse go by it.
    pub(crate) name: Arc<str>,
    pub(crate) scope: Scope,
    pub(crate) options: InstanceOptions,
    pub(crate) table: Node,
    /// The most that its table may grant it, if it comes from the policy directory.
    pub(crate) ceiling: Option<Arc<Ceiling>>,
    pub(crate) place: Whereabouts,
}

/// Where an instance is configured, for what is wrong with it.
pub(crate) struct Whereabouts {
    /// The file that holds its table; none for a policy without a file of options.
    pub(crate) source: Option<Source>,
    /// The table's path in that file.
    pub(crate) path: String,
    /// The policy file that the instance runs, if it comes from the policy directory.
    pub(crate) policy: Option<PathBuf>,
}

impl Scope {
    /// A name that is unique in this scope made unique in the process.
    fn qualify(&self, name: &str) -> Arc<str> {
        match self {
            Scope::Gateway => name.into(),
            Scope::Listener(scope) | Scope::Route(scope) => format!("{scope}/{name}").into(),
        }
    }
}

impl Whereabouts {
    /// An error about `path` in the instance's table.
    pub(crate) fn error(&self, table: &Node, path: &str, message: String) -> Diagnostic {
        let message = table.redact(message);
        // A policy's file is not named by any setting.
        let policy = self.policy.as_ref().filter(|_| path.is_empty() || path == "file");
        match (policy, &self.source) {
            (Some(policy), _) => Diagnostic::error(policy, message),
            (None, Some(source)) => {
                NodeError::new(table.locate(path), &join(&self.path, path), message).diagnostic(source)
            }
            (None, None) => self.without_options(message),
        }
    }

    /// An error that reading the instance's table ended with.
    pub(crate) fn node_error(&self, error: NodeError) -> Diagnostic {
        match &self.source {
            Some(source) => error.diagnostic(source),
            None => self.without_options(error.to_string()),
        }
    }

    fn without_options(&self, message: String) -> Diagnostic {
        let policy = self.policy.clone().unwrap_or_default();
        let options = policy.with_extension("yaml");
        let help = format!("its options stand in `{}`", options.display());
        Diagnostic::error(&policy, message).with_help(help)
    }
}

impl Builder<'_> {
    /// All instances: the gateway's with the policies in their place, the listeners', the routes'.
    pub(super) fn plan(&mut self, policies: Vec<Planned>) -> Vec<Planned> {
        let config = &self.loaded.config;
        let mut policies = Some(policies);
        let mut planned: Vec<Planned> = self.prompter().into_iter().collect();
        for entry in &config.plugins {
            match entry {
                ChainEntry::Policies(_) => planned.extend(policies.take().unwrap_or_default()),
                ChainEntry::Plugin(entry) => planned.extend(self.planned(Scope::Gateway, entry)),
                ChainEntry::Unread => {}
            }
        }
        planned.extend(policies.take().unwrap_or_default());
        for listener in &config.listeners {
            let scope = Scope::Listener(listener.name.as_str().into());
            planned.extend(self.list(&scope, &listener.plugins));
        }
        for route in &config.routes {
            let scope = Scope::Route(route.name.as_str().into());
            planned.extend(self.list(&scope, &route.plugins));
        }
        self.refuse_equal_names(&planned);
        self.refuse_long_chains(&planned);
        planned
    }

    /// The plugin in front of all others that a rehearsal may have.
    fn prompter(&self) -> Option<Planned> {
        self.services.stage.as_ref()?.play.props.as_ref()?;
        let place =
            Whereabouts { source: Some(self.loaded.source.clone()), path: String::new(), policy: None };
        Some(Planned {
            registration: &REGISTRATION,
            name: PROPS.into(),
            scope: Scope::Gateway,
            options: InstanceOptions::default(),
            table: self.loaded.root.empty_table(),
            ceiling: None,
            place,
        })
    }

    fn list(&mut self, scope: &Scope, entries: &[ChainEntry]) -> Vec<Planned> {
        let plugins = entries.iter().filter_map(|entry| match entry {
            ChainEntry::Plugin(entry) => Some(entry),
            ChainEntry::Policies(_) | ChainEntry::Unread => None,
        });
        plugins.filter_map(|entry| self.planned(scope.clone(), entry)).collect()
    }

    fn planned(&mut self, scope: Scope, entry: &PluginEntry) -> Option<Planned> {
        let source = &self.loaded.source;
        let registry = &self.services.registry;
        let Some(registration) = registry.find(&entry.kind) else {
            let error = source.error(entry.kind_span, format!("there is no plugin `{}`", entry.kind));
            self.findings.push(error.with_help(registry.suggest(&entry.kind)));
            return None;
        };
        Some(Planned {
            registration,
            name: scope.qualify(entry.options.name.as_deref().unwrap_or(&entry.kind)),
            scope,
            options: entry.options.clone(),
            table: entry.table.clone(),
            ceiling: None,
            place: Whereabouts { source: Some(source.clone()), path: entry.path.clone(), policy: None },
        })
    }

    /// State, metrics and logs go by the name. What one list of the configuration shows by itself has its error
    /// already.
    fn refuse_equal_names(&mut self, planned: &[Planned]) {
        let mut seen: HashMap<&str, &Planned> = HashMap::new();
        for plugin in planned {
            match seen.get(&*plugin.name) {
                Some(first) if shown_by_their_list(first, plugin) => {}
                Some(first) => self.findings.push(equal_names(first, plugin)),
                None => drop(seen.insert(&plugin.name, plugin)),
            }
        }
    }

    fn refuse_long_chains(&mut self, planned: &[Planned]) {
        if is_too_long(planned.iter().map(|plugin| &plugin.scope)) {
            self.error("plugins", format!("a chain has at most {LONGEST_CHAIN} plugins"));
        }
    }
}

/// Whether the longest chain of plugins in these scopes is longer than it may be.
fn is_too_long<'p>(scopes: impl Iterator<Item = &'p Scope>) -> bool {
    let mut counts: HashMap<&Scope, usize> = HashMap::new();
    scopes.for_each(|scope| *counts.entry(scope).or_default() += 1);
    let longest = |of: fn(&Scope) -> bool| {
        counts.iter().filter(|(scope, _)| of(scope)).map(|(_, count)| *count).max().unwrap_or_default()
    };
    let total = longest(|scope| *scope == Scope::Gateway)
        + longest(|scope| matches!(scope, Scope::Listener(_)))
        + longest(|scope| matches!(scope, Scope::Route(_)));
    total > LONGEST_CHAIN
}

fn shown_by_their_list(first: &Planned, second: &Planned) -> bool {
    let list = |planned: &Planned| planned.place.policy.is_none().then(|| planned.scope.clone());
    list(first).is_some()
        && list(first) == list(second)
        && first.registration.kind == second.registration.kind
}

fn equal_names(first: &Planned, second: &Planned) -> Diagnostic {
    let of = match &first.place.policy {
        Some(policy) => format!("of policy `{}`", policy.display()),
        None => format!("of a `{}`", first.registration.kind),
    };
    let error = second.place.error(&second.table, "", format!("the name `{}` is that {of}", second.name));
    error.with_help(match &second.place.policy {
        Some(_) => "rename the file".to_owned(),
        None => format!("tell them apart: `- {{ name: ..., {}: ... }}`", second.registration.kind),
    })
}

/// The path of a part of the value at `base`.
fn join(base: &str, part: &str) -> String {
    match (base.is_empty(), part.is_empty(), part.starts_with('[')) {
        (true, ..) => part.to_owned(),
        (_, true, _) => base.to_owned(),
        (_, _, true) => format!("{base}{part}"),
        _ => format!("{base}.{part}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_has_no_more_plugins_than_can_be_numbered() {
        let (listener, route) = (Scope::Listener("main".into()), Scope::Route("all".into()));
        let chain = |count: usize, last: &Scope| {
            let scopes: Vec<_> = std::iter::repeat_n(Scope::Gateway, count).chain([last.clone()]).collect();
            is_too_long(scopes.iter().chain([&listener, &route]))
        };
        // Of two listeners' lists, a chain has one.
        let other = Scope::Listener("other".into());
        assert!(!chain(LONGEST_CHAIN - 2, &other) && chain(LONGEST_CHAIN - 1, &other));
        assert!(!chain(LONGEST_CHAIN - 3, &route) && chain(LONGEST_CHAIN - 2, &route));
    }
}
