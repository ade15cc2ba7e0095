//! The interpreter, with everything taken out that a script on a request's path must not do.

use std::sync::{Arc, OnceLock};

use portcullis_plugin::Capabilities;
use rhai::packages::{
    ArithmeticPackage, BasicArrayPackage, BasicFnPackage, BasicIteratorPackage, BasicMapPackage,
    BasicMathPackage, BasicStringPackage, LogicPackage, MoreStringPackage, Package,
};
use rhai::{Array, Dynamic, Engine, ImmutableString, Map, Module, OptimizationLevel, Shared};

use crate::call::{self, Outcome, charge_operations};
use crate::host;
use crate::limits::{EXPRESSION_DEPTH, Limits, VARIABLES};
use crate::value;

/// Bytes of text that are searched or made at the price of one operation.
const TEXT_PER_OPERATION: usize = 64;

/// An engine for the scripts of the plugin instance `name`, which may use what is `granted`.
pub(crate) fn new(limits: &Limits, name: Arc<str>, granted: &Arc<Capabilities>) -> Engine {
    // A raw engine has no interner, which is a lock that all workers would share, no file access and no
    // functions; the core package is left out for `sleep`.
    let mut engine = Engine::new_raw();
    for package in packages() {
        engine.register_global_module(package.clone());
    }
    for symbol in ["eval", "curry"] {
        engine.disable_symbol(symbol);
    }
    replace_unbounded(&mut engine);
    limit(&mut engine, limits);
    print_to_log(&mut engine, &name);
    host::register(&mut engine, name, granted);
    #[cfg(test)]
    engine.register_fn("panic_in_the_host", || -> i64 { panic!("a bug of the host") });
    engine
}

fn packages() -> &'static [Shared<Module>; 9] {
    static PACKAGES: OnceLock<[Shared<Module>; 9]> = OnceLock::new();
    PACKAGES.get_or_init(|| {
        [
            ArithmeticPackage::new().as_shared_module(),
            LogicPackage::new().as_shared_module(),
            BasicMathPackage::new().as_shared_module(),
            BasicIteratorPackage::new().as_shared_module(),
            BasicFnPackage::new().as_shared_module(),
            BasicStringPackage::new().as_shared_module(),
            MoreStringPackage::new().as_shared_module(),
            BasicArrayPackage::new().as_shared_module(),
            BasicMapPackage::new().as_shared_module(),
        ]
    })
}

fn limit(engine: &mut Engine, limits: &Limits) {
    engine
        .set_optimization_level(OptimizationLevel::Simple)
        .set_max_call_levels(limits.depth)
        .set_max_expr_depths(EXPRESSION_DEPTH, EXPRESSION_DEPTH)
        .set_max_variables(VARIABLES)
        .set_max_string_size(limits.string.0)
        .set_max_array_size(limits.array)
        .set_max_map_size(limits.map)
        .on_progress(|_| call::tick());
}

fn print_to_log(engine: &mut Engine, name: &Arc<str>) {
    let (printing, debugging) = (name.clone(), name.clone());
    // A line that the budget does not pay for is left out; the next operation ends the call.
    engine.on_print(move |text| drop(host::write_line(&printing, "info", text)));
    engine.on_debug(move |text, _, _| drop(host::write_line(&debugging, "debug", text)));
}

/// Replaces what the standard packages do without bound: recursion as deep as a value is nested, and
/// text that is larger than its parts by a factor.
fn replace_unbounded(engine: &mut Engine) {
    for name in ["to_string", "to_debug", "print", "debug"] {
        engine.register_fn(name, |array: &mut Array| value::print(&Dynamic::from_array(array.clone())));
        engine.register_fn(name, |map: &mut Map| value::print(&Dynamic::from_map(map.clone())));
    }
    engine.register_fn("to_json", |map: &mut Map| value::print(&Dynamic::from_map(map.clone())));
    engine.register_fn("==", value::same_array);
    engine
        .register_fn("!=", |left: &mut Array, right: Array| value::same_array(left, right).map(|same| !same));
    engine.register_fn("==", value::same_map);
    engine.register_fn("!=", |left: &mut Map, right: Map| value::same_map(left, right).map(|same| !same));
    engine.register_fn("replace", |text: &mut ImmutableString, from: &str, to: &str| replace(text, from, to));
    engine.register_fn("replace", |text: &mut ImmutableString, from: char, to: char| {
        replace(text, from.encode_utf8(&mut [0; 4]), to.encode_utf8(&mut [0; 4]))
    });
    engine.register_fn("replace", |text: &mut ImmutableString, from: &str, to: char| {
        replace(text, from, to.encode_utf8(&mut [0; 4]))
    });
    engine.register_fn("replace", |text: &mut ImmutableString, from: char, to: &str| {
        replace(text, from.encode_utf8(&mut [0; 4]), to)
    });
}

fn replace(text: &mut ImmutableString, from: &str, to: &str) -> Outcome<()> {
    charge_operations(text.len() / TEXT_PER_OPERATION)?;
    let grown = text.matches(from).count().saturating_mul(to.len());
    charge_operations(grown / TEXT_PER_OPERATION)?;
    *text = text.as_str().replace(from, to).into();
    Ok(())
}
