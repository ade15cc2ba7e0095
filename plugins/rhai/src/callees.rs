//! Calls of functions that nobody offers: refused at load, where the interpreter would wait for the
//! first request that gets to them.
//!
//! What a value is shows only when a script runs, so a method passes if any type has it, and any call
//! passes whose name the script also has as a string, a property or a key of a map: a map may hold
//! functions, and `is_def_fn` may have been asked first.

use std::collections::{BTreeMap, BTreeSet};

use portcullis_plugin::BuildError;
use rhai::{AST, ASTNode, Engine, Expr, FnCallExpr, Position, Stmt};

use crate::error;
use crate::load::Source;

/// Functions of the interpreter itself, which no package registers.
const OF_THE_LANGUAGE: [&str; 7] = ["Fn", "call", "debug", "is_def_fn", "is_def_var", "print", "type_of"];

/// Refuses the first call of a function that neither the files nor the engine, which has the imports
/// by now, offer.
pub(crate) fn check(engine: &Engine, files: &[(Source, AST)]) -> Result<(), BuildError> {
    let mut known = Known::of(engine);
    let mut calls = Vec::new();
    for (source, ast) in files {
        known.declare(ast);
        calls.push((source, known.read(ast)));
    }
    for (source, calls) in &calls {
        if let Some(call) = calls.iter().find(|call| !known.offers(call)) {
            return Err(known.refusal(call, source));
        }
    }
    Ok(())
}

/// A call as it is written.
struct Call {
    /// With the namespace, if it has one: `auth::is_admin`.
    name: String,
    arguments: usize,
    method: bool,
    position: Position,
}

struct Known {
    /// How many parameters the functions of a name have.
    functions: BTreeMap<String, BTreeSet<usize>>,
    /// Names of what may be a function that a value holds.
    held: BTreeSet<String>,
}

impl Known {
    fn of(engine: &Engine) -> Self {
        let registered = engine.collect_fn_metadata(
            None,
            |function| {
                Some((qualified(&function.namespace, &function.metadata.name), function.metadata.num_params))
            },
            true,
        );
        let mut known = Known { functions: BTreeMap::new(), held: BTreeSet::new() };
        for (name, parameters) in registered {
            known.functions.entry(name).or_default().insert(parameters);
        }
        known
    }

    fn declare(&mut self, ast: &AST) {
        for function in ast.iter_functions() {
            self.functions.entry(function.name.to_owned()).or_default().insert(function.params.len());
        }
    }

    /// The calls of a file, from top to bottom; notes the names of what values may hold.
    fn read(&mut self, ast: &AST) -> Vec<Call> {
        let mut calls = Vec::new();
        ast.walk(&mut |nodes: &[ASTNode<'_>]| {
            match nodes.last() {
                Some(
                    ASTNode::Stmt(Stmt::FnCall(call, position)) | ASTNode::Expr(Expr::FnCall(call, position)),
                ) => calls.extend(written(call, false, *position)),
                Some(ASTNode::Expr(Expr::MethodCall(call, position))) => {
                    calls.extend(written(call, true, *position));
                }
                Some(ASTNode::Expr(Expr::StringConstant(text, _))) => {
                    self.held.insert(text.to_string());
                }
                Some(ASTNode::Expr(Expr::Property(property, _))) => {
                    self.held.insert(property.2.to_string());
                }
                Some(ASTNode::Expr(Expr::Map(map, _))) => {
                    self.held.extend(map.0.iter().map(|(key, _)| key.name.to_string()));
                }
                _ => {}
            }
            true
        });
        calls.sort_by_key(|call| (call.position.line(), call.position.position()));
        calls
    }

    fn offers(&self, call: &Call) -> bool {
        OF_THE_LANGUAGE.contains(&&*call.name)
            || self.held.contains(&call.name)
            || self
                .functions
                .get(&call.name)
                // The object is a parameter of what the host offers, and none of what a script declares.
                .is_some_and(|parameters| call.method || parameters.contains(&call.arguments))
    }

    fn refusal(&self, call: &Call, source: &Source) -> BuildError {
        let at = |message: &str| error::located(message, &source.path, &source.text, call.position);
        let name = &call.name;
        if let Some(parameters) = self.functions.get(name) {
            let parameters: Vec<_> = parameters.iter().map(usize::to_string).collect();
            let arguments = if call.arguments == 1 { "argument" } else { "arguments" };
            return at(&format!("no function `{name}` takes {} {arguments}", call.arguments))
                .help(format!("it takes {}", parameters.join(" or ")));
        }
        let refused = at(&format!("there is no function `{name}`"));
        match self.nearest(name) {
            Some(nearest) => refused.help(format!("did you mean `{nearest}`?")),
            None => refused,
        }
    }

    /// The known name that `name` may be a slip of.
    fn nearest(&self, name: &str) -> Option<&str> {
        let names = self.functions.keys().map(String::as_str).chain(OF_THE_LANGUAGE);
        let near = names
            .filter(|known| is_name(known))
            .map(|known| (strsim::damerau_levenshtein(known, name), known))
            .min()?;
        (near.0 <= name.len() / 2).then_some(near.1)
    }
}

/// A call, unless it is an operator.
fn written(call: &FnCallExpr, method: bool, position: Position) -> Option<Call> {
    let name = qualified(&call.namespace.to_string(), &call.name);
    let found = Call { name, arguments: call.args.len(), method, position };
    (call.op_token.is_none() && is_name(&found.name)).then_some(found)
}

fn qualified(namespace: &str, name: &str) -> String {
    if namespace.is_empty() { name.to_owned() } else { format!("{namespace}::{name}") }
}

/// Operators, getters and anonymous functions have names that no script can write.
fn is_name(name: &str) -> bool {
    name.starts_with(|char: char| char.is_alphabetic() || char == '_') && !name.contains('$')
}
