//! What the host offers to scripts. Everything is registered through [`Api`], with its documentation
//! and an example, so that definitions and reference can't differ from what there is.

mod capabilities;
mod exchange;
mod functions;
mod message;
mod text;

use std::any::type_name;
use std::sync::Arc;

use portcullis_plugin::Capabilities;
use rhai::{Engine, FuncRegistration, RhaiNativeFunc, Variant};

pub(crate) use exchange::{Conn, Context};
pub(crate) use functions::write_line;

/// One documented thing that scripts can use.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Entry {
    /// The type it belongs to; none for a function.
    pub(crate) on: Option<&'static str>,
    pub(crate) kind: Kind,
    /// `name(parameters) -> result`, `name: type`, or `[index] -> result`.
    pub(crate) signature: &'static str,
    /// One or two sentences.
    pub(crate) doc: &'static str,
    /// Statements that work in a hook of a complete exchange.
    pub(crate) example: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Function,
    Property { writable: bool },
    Index { writable: bool },
}

impl Entry {
    /// The name alone; empty for an index.
    pub(crate) fn name(&self) -> &'static str {
        let end = self.signature.find(['(', ':', '[']).unwrap_or(self.signature.len());
        self.signature.get(..end).unwrap_or_default()
    }
}

/// Registers everything for the scripts of the plugin instance `name`, with what they are `granted`; answers with the
/// documentation.
pub(crate) fn register(engine: &mut Engine, name: Arc<str>, granted: &Arc<Capabilities>) -> Vec<Entry> {
    let mut api = Api { engine, on: None, entries: Vec::new() };
    functions::register(&mut api, name);
    capabilities::register(&mut api, granted);
    text::register(&mut api);
    exchange::register(&mut api);
    message::register(&mut api);
    api.entries
}

/// The documentation alone.
pub(crate) fn entries() -> Vec<Entry> {
    register(&mut Engine::new_raw(), "".into(), &Arc::default())
}

/// A type's name in scripts: that of the Rust type.
fn script_name<T>() -> &'static str {
    type_name::<T>().rsplit("::").next().unwrap_or_default()
}

/// Registers functions in an engine and keeps their documentation.
struct Api<'e> {
    engine: &'e mut Engine,
    on: Option<&'static str>,
    entries: Vec<Entry>,
}

impl Api<'_> {
    /// What follows belongs to `T`.
    fn on<T: Variant + Clone>(&mut self) {
        self.engine.register_type_with_name::<T>(script_name::<T>());
        self.on = Some(script_name::<T>());
    }

    /// A function, or a method of the current type.
    fn function<A: 'static, const N: usize, const X: bool, R: Variant + Clone, const F: bool>(
        &mut self,
        signature: &'static str,
        doc: &'static str,
        example: &'static str,
        function: impl RhaiNativeFunc<A, N, X, R, F> + Send + Sync + 'static,
    ) {
        let name = self.document(Kind::Function, signature, doc, example);
        self.register(FuncRegistration::new(name).in_global_namespace(), function);
    }

    /// A property that is read.
    fn property<A: 'static, const N: usize, const X: bool, R: Variant + Clone, const F: bool>(
        &mut self,
        signature: &'static str,
        doc: &'static str,
        example: &'static str,
        getter: impl RhaiNativeFunc<A, N, X, R, F> + Send + Sync + 'static,
    ) {
        let name = self.document(Kind::Property { writable: false }, signature, doc, example);
        self.register(FuncRegistration::new_getter(name), getter);
    }

    /// The property registered last can also be set.
    fn writable<A: 'static, const N: usize, const X: bool, R: Variant + Clone, const F: bool>(
        &mut self,
        setter: impl RhaiNativeFunc<A, N, X, R, F> + Send + Sync + 'static,
    ) {
        let Some(entry) = self.entries.last_mut() else { return };
        entry.kind = Kind::Property { writable: true };
        let name = entry.name();
        self.register(FuncRegistration::new_setter(name), setter);
    }

    /// The property registered last answers with a handle. After a change within it the interpreter
    /// assigns it back, which has nothing to do.
    fn handle<Owner: Variant + Clone, Handle: Variant + Clone>(&mut self) {
        let Some(name) = self.entries.last().map(Entry::name) else { return };
        self.register(FuncRegistration::new_setter(name), |_: &mut Owner, _: Handle| {});
    }

    /// Reading by index.
    fn index<A: 'static, const N: usize, const X: bool, R: Variant + Clone, const F: bool>(
        &mut self,
        signature: &'static str,
        doc: &'static str,
        example: &'static str,
        getter: impl RhaiNativeFunc<A, N, X, R, F> + Send + Sync + 'static,
    ) {
        self.document(Kind::Index { writable: false }, signature, doc, example);
        self.register(FuncRegistration::new_index_getter(), getter);
    }

    /// The index registered last can also be set.
    fn writable_index<A: 'static, const N: usize, const X: bool, R: Variant + Clone, const F: bool>(
        &mut self,
        setter: impl RhaiNativeFunc<A, N, X, R, F> + Send + Sync + 'static,
    ) {
        if let Some(entry) = self.entries.last_mut() {
            entry.kind = Kind::Index { writable: true };
        }
        self.register(FuncRegistration::new_index_setter(), setter);
    }

    fn document(
        &mut self,
        kind: Kind,
        signature: &'static str,
        doc: &'static str,
        example: &'static str,
    ) -> &'static str {
        let entry = Entry { on: self.on, kind, signature, doc, example };
        self.entries.push(entry);
        entry.name()
    }

    fn register<A: 'static, const N: usize, const X: bool, R: Variant + Clone, const F: bool>(
        &mut self,
        registration: FuncRegistration,
        function: impl RhaiNativeFunc<A, N, X, R, F> + Send + Sync + 'static,
    ) {
        registration.register_into_engine(self.engine, function);
    }
}
