//! From a file to a program: parsing, imports, constants, hooks.
//!
//! A file is parsed twice. The first time its imports are found and its top-level statements run, so
//! that its constants have values. The second time those values are known: they are put in place of
//! the names, and a name that nobody defined is an error with its position, before any request.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, RwLock};

use portcullis_plugin::{BuildContext, BuildError, Capabilities, HookName};
use rhai::{
    AST, ASTNode, Caches, Dynamic, Engine, EvalAltResult, EvalContext, Expr, Module, ModuleResolver,
    OptimizationLevel, Position, Scope, Shared, Stmt,
};
use serde_json::{Map, Value};
use thread_local::ThreadLocal;

use crate::call;
use crate::callees;
use crate::coverage::Lines;
use crate::engine;
use crate::error::{self, Fault};
use crate::limits::Limits;
use crate::value;

/// Imported files that a script may have, those of its imports included.
const MAX_IMPORTS: usize = 32;

/// Names with types of arguments that a thread keeps the function of: more than any script has calls,
/// for those whose names are made from what a client sends.
const MAX_RESOLVED: usize = 4096;

/// A script that is ready to be called.
pub(crate) struct Program {
    pub(crate) engine: Engine,
    pub(crate) ast: AST,
    /// The hooks it has functions for, and where those stand.
    pub(crate) hooks: Vec<(HookName, Position)>,
    /// Its file, for messages.
    pub(crate) file: String,
    /// Which functions its names mean, as the calls of each thread found out.
    resolved: ThreadLocal<RefCell<Caches>>,
}

impl Program {
    /// Calls a function of the script with one argument.
    pub(crate) fn call(&self, function: &str, argument: Dynamic) -> Result<Dynamic, Box<EvalAltResult>> {
        let resolved = self.resolved.get_or_default();
        // A call does not lead to another of the same script; if it did, it would look up by itself.
        match resolved.try_borrow_mut() {
            Ok(mut resolved) => self.call_with(&mut resolved, function, argument),
            Err(_) => self.call_with(&mut Caches::new(), function, argument),
        }
    }

    fn call_with(
        &self,
        resolved: &mut Caches,
        function: &str,
        argument: Dynamic,
    ) -> Result<Dynamic, Box<EvalAltResult>> {
        make_room(resolved);
        let mut global = self.engine.new_global_runtime_state();
        global.lib.push(self.ast.shared_lib().clone());
        let (mut scope, mut argument) = (Scope::new(), argument);
        EvalContext::new(&self.engine, &mut global, resolved, &mut scope, None).call_fn_raw(
            function,
            false,
            false,
            &mut [&mut argument],
        )
    }
}

/// Leaves what is known for the next call: neither that of a call which broke off within an imported
/// function, nor more than a thread keeps.
fn make_room(resolved: &mut Caches) {
    resolved.rewind_fn_resolution_caches(1);
    let names = resolved.fn_resolution_cache_mut();
    if names.dict.len() > MAX_RESOLVED {
        names.clear();
    }
}

/// Reads and compiles the script `file`.
pub(crate) fn load(
    file: &str,
    config: &Map<String, Value>,
    limits: &Limits,
    granted: &Arc<Capabilities>,
    context: &mut BuildContext<'_>,
) -> Result<Program, BuildError> {
    let config = value::from_json(&Value::Object(config.clone()))
        .map_err(|error| BuildError::at("config", error.to_string()))?;
    let modules = Modules::default();
    let mut engine = engine::new(limits, context.name().clone(), granted);
    engine.set_module_resolver(modules.clone());
    let lines = context.coverage().map(|coverage| Lines::new(coverage, &mut engine));
    let mut loader = Loader {
        engine,
        limits,
        modules,
        directory: Path::new(file).parent().unwrap_or(Path::new("")).to_owned(),
        constants: BTreeMap::from([("config".into(), (config, PathBuf::new()))]),
        loading: Vec::new(),
        drafts: Vec::new(),
        lines,
        context,
    };
    let source = loader.read(Path::new(file))?;
    let ast = loader.compile(&source)?;
    let hooks = hooks(&ast, &source)?;
    callees::check(&loader.engine, &loader.drafts)?;
    let mut engine = loader.engine;
    engine.register_global_module(constants_module(loader.constants));
    Ok(Program { engine, ast, hooks, file: file.to_owned(), resolved: ThreadLocal::new() })
}

/// A file as it was read.
#[derive(Clone)]
pub(crate) struct Source {
    pub(crate) path: PathBuf,
    pub(crate) text: Arc<str>,
}

struct Loader<'l, 'c> {
    engine: Engine,
    limits: &'l Limits,
    modules: Modules,
    /// The script's own directory, from which alone files are imported.
    directory: PathBuf,
    /// Constants of all files, with the file that defines them.
    constants: BTreeMap<String, (Dynamic, PathBuf)>,
    /// The files being loaded, outermost first.
    loading: Vec<String>,
    /// All files as they are written, with nothing optimised away.
    drafts: Vec<(Source, AST)>,
    /// Where it is noted which lines run.
    lines: Option<Lines>,
    context: &'l mut BuildContext<'c>,
}

impl Loader<'_, '_> {
    fn read(&mut self, path: &Path) -> Result<Source, BuildError> {
        let shown = path.to_string_lossy();
        let file = self.context.file("file", &shown)?;
        let text = file.text().map_err(|message| BuildError::at("file", message))?.into();
        Ok(Source { path: file.path.clone(), text })
    }

    /// Compiles a file after everything that it imports.
    fn compile(&mut self, source: &Source) -> Result<AST, BuildError> {
        let syntax = |error| error::parse_error(&error, &source.path, &source.text);
        self.engine.set_optimization_level(OptimizationLevel::None).set_strict_variables(false);
        let draft = self.engine.compile(&source.text).map_err(syntax)?;
        for import in imports(&draft, source)? {
            self.import(&import, source)?;
        }
        let constants = self.evaluate(&draft, source)?;
        self.engine.set_optimization_level(OptimizationLevel::Simple).set_strict_variables(true);
        let marked = self.lines.as_ref().map(|lines| lines.marked(&draft, source));
        let text = marked.as_deref().unwrap_or(&source.text);
        let mut ast = self.engine.compile_with_scope(&constants, text).map_err(syntax)?;
        if self.loading.is_empty() {
            // Per call, a source would be one more reference count that all workers write to.
            ast.clear_source();
        } else {
            ast.set_source(source.path.to_string_lossy().as_ref());
        }
        self.drafts.push((source.clone(), draft));
        Ok(ast)
    }

    /// Runs the top-level statements; answers with the constants they leave.
    fn evaluate(&mut self, draft: &AST, source: &Source) -> Result<Scope<'static>, BuildError> {
        let (config, _) = self.constants.get("config").cloned().unwrap_or_default();
        let mut scope = Scope::new();
        scope.push_constant_dynamic("config", config.clone());
        call::metered(self.limits, || self.engine.run_ast_with_scope(&mut scope, draft))
            .map_err(|error| Fault::new(*error, self.limits).into_build_error(&source.path, &source.text))?;
        let mut constants = Scope::new();
        constants.push_constant_dynamic("config", config);
        for (name, constant, value) in scope.iter().filter(|(name, ..)| *name != "config") {
            if !constant {
                return Err(error::located(
                    &format!("`{name}` would be gone before the first request"),
                    &source.path,
                    &source.text,
                    position_of(&source.text, "let", name),
                )
                .help("write `const` for what all hooks read; use `ctx.facts` for what one request carries along"));
            }
            self.define(name, &value, source)?;
            constants.push_constant_dynamic(name, value);
        }
        Ok(constants)
    }

    /// Constants that are looked up while a request runs share one name space.
    fn define(&mut self, name: &str, value: &Dynamic, source: &Source) -> Result<(), BuildError> {
        match self.constants.insert(name.to_owned(), (value.clone(), source.path.clone())) {
            Some((_, other)) if other != source.path => Err(error::located(
                &format!("`{name}` is also a constant of `{}`", other.display()),
                &source.path,
                &source.text,
                position_of(&source.text, "const", name),
            )),
            _ => Ok(()),
        }
    }

    /// Loads an imported file once, and gives it the name that the importing file uses.
    fn import(&mut self, import: &Import, source: &Source) -> Result<(), BuildError> {
        let fault = |message: String| error::located(&message, &source.path, &source.text, import.position);
        let path = import_path(&self.directory, &import.path).map_err(|message| fault(message.to_owned()))?;
        let module = match self.modules.find(&import.path) {
            Some(module) => module,
            None if self.loading.contains(&import.path) => {
                return Err(fault(format!("`{}` imports itself", import.path)));
            }
            None if self.modules.len() + self.loading.len() >= MAX_IMPORTS => {
                return Err(fault(format!("more than {MAX_IMPORTS} imports")));
            }
            None => {
                let imported = self.read(&path).map_err(|error| fault(error.message))?;
                self.loading.push(import.path.clone());
                let module = self.module(&imported)?;
                self.loading.pop();
                self.modules.insert(&import.path, module)
            }
        };
        if let Some(alias) = &import.alias {
            // Hooks run without the top level, so imported names have to be the engine's.
            self.engine.register_static_module(alias, module);
        }
        Ok(())
    }

    fn module(&mut self, source: &Source) -> Result<Shared<Module>, BuildError> {
        let ast = self.compile(source)?;
        let mut scope = Scope::new();
        if let Some((config, _)) = self.constants.get("config") {
            scope.push_constant_dynamic("config", config.clone());
        }
        let module = call::metered(self.limits, || Module::eval_ast_as_new(scope, &ast, &self.engine));
        let mut module = module
            .map_err(|error| Fault::new(*error, self.limits).into_build_error(&source.path, &source.text))?;
        module.build_index();
        Ok(module.into())
    }
}

fn constants_module(constants: BTreeMap<String, (Dynamic, PathBuf)>) -> Shared<Module> {
    let mut module = Module::new();
    for (name, (value, _)) in constants {
        module.set_var(name, value);
    }
    module.into()
}

/// An `import` statement.
struct Import {
    path: String,
    alias: Option<String>,
    position: Position,
}

/// The imports of a file; they stand at its top and name their file literally.
fn imports(ast: &AST, source: &Source) -> Result<Vec<Import>, BuildError> {
    let mut found = Vec::new();
    let mut wrong = None;
    let mut visit = |nodes: &[ASTNode<'_>], top: bool| {
        let Some(ASTNode::Stmt(Stmt::Import(import, position))) = nodes.last() else { return true };
        match &import.0 {
            Expr::StringConstant(path, _) if top && nodes.len() == 1 => {
                let alias = Some(import.1.name.to_string()).filter(|alias| !alias.is_empty());
                found.push(Import { path: path.to_string(), alias, position: *position });
            }
            _ => wrong = Some(*position),
        }
        wrong.is_none()
    };
    ast.clone_statements_only().walk(&mut |nodes| visit(nodes, true));
    ast.clone_functions_only().walk(&mut |nodes| visit(nodes, false));
    match wrong {
        None => Ok(found),
        Some(position) => Err(error::located(
            "imports stand at the top of a script and name a file literally",
            &source.path,
            &source.text,
            position,
        )),
    }
}

/// The file of an import: below the script's own directory, `.rhai` unless it says so itself.
fn import_path(directory: &Path, import: &str) -> Result<PathBuf, &'static str> {
    let relative = Path::new(import);
    let inside = relative.components().all(|component| matches!(component, Component::Normal(_)));
    if import.is_empty() || !inside || import.contains('\\') {
        return Err("a script imports from its own directory only: no `..`, no absolute path");
    }
    let mut path = directory.join(relative);
    if path.extension().is_none() {
        path.set_extension("rhai");
    }
    Ok(path)
}

/// The hooks that a script has functions for.
fn hooks(ast: &AST, source: &Source) -> Result<Vec<(HookName, Position)>, BuildError> {
    let mut hooks = Vec::new();
    for function in ast.iter_functions() {
        let position = || position_of(&source.text, "fn", function.name);
        let fault = |message: String| error::located(&message, &source.path, &source.text, position());
        let hook = HookName::ALL.into_iter().find(|hook| hook.as_str() == function.name);
        match hook {
            Some(hook) if function.params.len() == 1 && function.this_type.is_none() => {
                hooks.push((hook, position()));
            }
            Some(hook) => {
                let parameter = if hook == HookName::OnConnection { "conn" } else { "ctx" };
                return Err(fault(format!("a hook has one parameter: fn {hook}({parameter})")));
            }
            None if function.name.starts_with("on_") => {
                return Err(
                    fault(format!("`{}` is not a hook", function.name)).help(nearest_hook(function.name))
                );
            }
            None => {}
        }
    }
    if hooks.is_empty() {
        let known = HookName::ALL.map(HookName::as_str).join("`, `");
        return Err(
            BuildError::at("file", "the script has no hook").help(format!("write a function `{known}`"))
        );
    }
    Ok(hooks)
}

fn nearest_hook(name: &str) -> String {
    let nearest =
        HookName::ALL.into_iter().min_by_key(|hook| strsim::damerau_levenshtein(hook.as_str(), name));
    let nearest = nearest.map_or("on_request", HookName::as_str);
    format!("names with `on_` are hooks: did you mean `{nearest}`? else choose another beginning")
}

/// Where `keyword name` stands; the interpreter does not keep it.
fn position_of(text: &str, keyword: &str, name: &str) -> Position {
    let declares = |line: &str| {
        let (at, _) = line.match_indices(keyword).find(|(at, _)| {
            let rest = line.get(at + keyword.len()..).unwrap_or_default();
            let after = rest.trim_start().strip_prefix(name);
            rest.starts_with(char::is_whitespace)
                && after.is_some_and(|after| {
                    !after.starts_with(|char: char| char.is_alphanumeric() || char == '_')
                })
        })?;
        Some(line.get(..at)?.chars().count() + 1)
    };
    text.lines()
        .zip(1_u16..)
        .find_map(|(line, number)| Some(Position::new(number, u16::try_from(declares(line)?).ok()?)))
        .unwrap_or(Position::NONE)
}

/// The imported files, by the path that imports name. Filled while loading, only read afterwards.
#[derive(Clone, Default)]
struct Modules(Arc<RwLock<BTreeMap<String, Shared<Module>>>>);

impl Modules {
    fn find(&self, path: &str) -> Option<Shared<Module>> {
        self.0.read().ok()?.get(path).cloned()
    }

    fn insert(&self, path: &str, module: Shared<Module>) -> Shared<Module> {
        if let Ok(mut modules) = self.0.write() {
            modules.insert(path.to_owned(), module.clone());
        }
        module
    }

    fn len(&self) -> usize {
        self.0.read().map_or(0, |modules| modules.len())
    }
}

impl ModuleResolver for Modules {
    fn resolve(
        &self,
        _: &Engine,
        _: Option<&str>,
        path: &str,
        position: Position,
    ) -> Result<Shared<Module>, Box<EvalAltResult>> {
        self.find(path).ok_or_else(|| EvalAltResult::ErrorModuleNotFound(path.to_owned(), position).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_that_a_thread_keeps_are_bounded() {
        let mut resolved = Caches::new();
        for count in [MAX_RESOLVED, MAX_RESOLVED + 1] {
            let names = resolved.fn_resolution_cache_mut();
            names.dict.extend((0..count as u64).map(|name| (name, None)));
            make_room(&mut resolved);
            let kept = resolved.fn_resolution_cache_mut().dict.len();
            assert_eq!(kept, if count > MAX_RESOLVED { 0 } else { count });
        }
    }
}
