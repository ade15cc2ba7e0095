//! What is given beside the requests of a rehearsal: a plugin in front of all others says who is calling and what was
//! noted before, and sees in the end what has become of both.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use portcullis_plugin::{Exchange, Hook, HookName, Needs, Plugin, Principal, Registration, StateKey};
use serde_json::Value;

use crate::state::StateStore;

/// What no plugin of a configuration is called.
pub(crate) const PROPS: &str = "core.given";

/// The plugin in front; no configuration can name it.
pub(crate) static REGISTRATION: Registration = Registration {
    kind: PROPS,
    summary: "what is given in a test",
    example: "",
    state_schema: 0,
    build: |_, context| Ok(Arc::new(Prompter(context.shared(Props::default)))),
    schema: Default::default,
};

/// What is given, and what was there in the end.
#[derive(Debug, Default)]
pub(crate) struct Props {
    given: Mutex<Seen>,
    seen: Mutex<Seen>,
}

/// Who is calling, and what was noted.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Seen {
    pub(crate) principal: Option<Principal>,
    pub(crate) facts: BTreeMap<String, Value>,
}

impl Props {
    /// Gives this to requests from now on.
    pub(crate) fn give(&self, given: Seen) {
        *self.given.lock().unwrap_or_else(PoisonError::into_inner) = given;
    }

    /// What was there in the end of the last request.
    pub(crate) fn seen(&self) -> Seen {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Has the plugin in front find these.
    pub(crate) fn put_into(self: &Arc<Self>, state: &StateStore) {
        let key = StateKey { kind: PROPS, name: PROPS.into(), schema: 0 };
        state.shared(key, &mut || self.clone());
    }
}

struct Prompter(Arc<Props>);

impl Plugin for Prompter {
    fn needs(&self) -> Needs {
        Needs::hooks([HookName::OnRequest, HookName::OnLog])
    }

    fn on_request<'a>(&'a self, exchange: &'a mut Exchange) -> Hook<'a> {
        let given = self.0.given.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(principal) = given.principal {
            exchange.set_principal(principal);
        }
        given.facts.into_iter().for_each(|(name, value)| exchange.set_fact(&name, value));
        Hook::CONTINUE
    }

    fn on_log<'a>(&'a self, exchange: &'a mut Exchange) -> Hook<'a> {
        let facts = exchange.facts().map(|(name, value)| (name.to_owned(), value.clone())).collect();
        let seen = Seen { principal: exchange.principal().cloned(), facts };
        *self.0.seen.lock().unwrap_or_else(PoisonError::into_inner) = seen;
        Hook::CONTINUE
    }
}
