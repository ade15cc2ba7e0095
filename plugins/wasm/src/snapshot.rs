//! A module as its `configure` left it: what every fresh instance would begin with, and always alike
//! (reading the configuration, asking for memory), is done once at load, and its outcome becomes the
//! module's initial state.
//!
//! It runs the core module by itself, reads memory and globals afterwards, and writes them into the
//! module. Whatever could make the outcome differ from instance to instance, and whatever holds state
//! elsewhere, is an error: such a module is used as it is.

use std::sync::Arc;

use wasm_encoder::reencode::{Reencode, RoundtripReencoder};
use wasm_encoder::{
    ConstExpr, DataSection, ExportKind, ExportSection, GlobalSection, MemorySection, RawSection,
};
use wasmparser::{Operator, Parser, Payload, TypeRef};
use wasmtime::{Caller, Engine, Error, Extern, Instance, Linker, Memory, Module, Result, Store, Val, ensure};

use crate::host::{About, Host, Pace};
use crate::load::interface;

/// Under which names the state of an instance can be read.
const MEMORY: &str = "portcullis:memory";
const GLOBAL: &str = "portcullis:global:";

/// Bytes that are not zero. Larger images are no longer mapped but copied, instance by instance.
const MAX_IMAGE: usize = 8 << 20;

/// Zeros that are worth a data segment of their own before them: more than its head.
const GAP: usize = 64;

/// What an instance holds.
struct State {
    memory: Vec<u8>,
    /// Of the mutable ones, in their order.
    globals: Vec<ConstExpr>,
}

/// `module` with the state in which its `configure` leaves it, within `budget` ticks.
pub(crate) async fn snapshot(
    engine: &Engine,
    module: &[u8],
    about: &Arc<About>,
    budget: u32,
) -> Result<Vec<u8>> {
    let globals = check(module)?;
    let exposed = Module::new(engine, exposed(module, &globals)?)?;
    let mut store = Store::new(engine, Host::new(about.clone()));
    store.limiter(|host| host);
    store.epoch_deadline_callback(|mut context| context.data_mut().tick());
    store.set_epoch_deadline(1);
    store.data_mut().begin(budget, Pace::Hold);
    let instance = linker(engine, &exposed)?.instantiate_async(&mut store, &exposed).await?;
    configure(&mut store, &instance).await?;
    let state = state(&mut store, &instance, globals.len())?;
    frozen(module, &state)
}

/// The module's mutable globals, if its state is one memory, these, and nothing else.
fn check(module: &[u8]) -> Result<Vec<u32>> {
    let (mut memories, mut globals) = (0, Vec::new());
    for payload in Parser::new(0).parse_all(module) {
        match payload? {
            Payload::ImportSection(imports) => {
                for import in imports.into_imports() {
                    ensure!(matches!(import?.ty, TypeRef::Func(_)), "imports more than functions");
                }
            }
            Payload::MemorySection(section) => memories += section.count(),
            Payload::GlobalSection(section) => {
                for (index, global) in (0..).zip(section) {
                    if global?.ty.mutable {
                        globals.push(index);
                    }
                }
            }
            Payload::ExportSection(section) => {
                for export in section {
                    ensure!(export?.name != "_initialize", "would be initialised twice");
                }
            }
            Payload::CodeSectionEntry(body) => {
                for operator in body.get_operators_reader()? {
                    ensure!(!leaves_state_elsewhere(&operator?), "changes tables or segments");
                }
            }
            _ => {}
        }
    }
    ensure!(memories == 1, "has {memories} memories");
    Ok(globals)
}

fn leaves_state_elsewhere(operator: &Operator<'_>) -> bool {
    matches!(
        operator,
        Operator::TableSet { .. }
            | Operator::TableGrow { .. }
            | Operator::TableFill { .. }
            | Operator::TableCopy { .. }
            | Operator::TableInit { .. }
            | Operator::ElemDrop { .. }
            | Operator::MemoryInit { .. }
            | Operator::DataDrop { .. }
    )
}

/// The module with its state among its exports.
fn exposed(module: &[u8], globals: &[u32]) -> Result<Vec<u8>> {
    let mut rewritten = wasm_encoder::Module::new();
    for payload in Parser::new(0).parse_all(module) {
        let payload = payload?;
        if let Payload::ExportSection(section) = payload {
            let mut exports = ExportSection::new();
            RoundtripReencoder.parse_export_section(&mut exports, section)?;
            exports.export(MEMORY, ExportKind::Memory, 0);
            for (at, index) in globals.iter().enumerate() {
                exports.export(&format!("{GLOBAL}{at}"), ExportKind::Global, *index);
            }
            rewritten.section(&exports);
        } else {
            keep(&mut rewritten, module, &payload);
        }
    }
    Ok(rewritten.finish())
}

fn keep(rewritten: &mut wasm_encoder::Module, module: &[u8], payload: &Payload<'_>) {
    if let Some((id, range)) = payload.as_section()
        && let Some(data) = module.get(range)
    {
        rewritten.section(&RawSection { id, data });
    }
}

/// What `configure` may use. All else traps: it could differ from one instance to the next.
fn linker(engine: &Engine, module: &Module) -> Result<Linker<Host>> {
    let mut linker = Linker::new(engine);
    let host = interface("host");
    linker.func_wrap_async(&host, "config", |mut caller: Caller<'_, Host>, (at,): (u32,)| {
        Box::new(async move { hand_over_config(&mut caller, at).await })
    })?;
    // What it has to say was logged when it was judged.
    linker.func_wrap(&host, "log", |_: u32, _: u32, _: u32| ())?;
    linker.define_unknown_imports_as_traps(module)?;
    Ok(linker)
}

/// Returns the configuration as the canonical ABI has it: pointer and length of a string, at `at`.
async fn hand_over_config(caller: &mut Caller<'_, Host>, at: u32) -> Result<()> {
    let config = caller.data().about.config.clone();
    let length = u32::try_from(config.len())?;
    let Some(Extern::Func(realloc)) = caller.get_export("cabi_realloc") else {
        return Err(Error::msg("exports no cabi_realloc"));
    };
    let realloc = realloc.typed::<(u32, u32, u32, u32), u32>(&mut *caller)?;
    let text = realloc.call_async(&mut *caller, (0, 0, 1, length)).await?;
    let Some(Extern::Memory(memory)) = caller.get_export(MEMORY) else {
        return Err(Error::msg("no memory"));
    };
    memory.write(&mut *caller, text as usize, config.as_bytes())?;
    let result = [text.to_le_bytes(), length.to_le_bytes()].concat();
    Ok(memory.write(caller, at as usize, &result)?)
}

async fn configure(store: &mut Store<Host>, instance: &Instance) -> Result<()> {
    let name = format!("{}#configure", interface("configuration"));
    let function = instance.get_typed_func::<(), u32>(&mut *store, &name)?;
    let result = function.call_async(&mut *store, ()).await?;
    let discriminant = memory(store, instance)?.data(&*store).get(result as usize).copied();
    ensure!(discriminant == Some(0), "refuses its configuration");
    if let Ok(after) = instance.get_typed_func::<u32, ()>(&mut *store, &format!("cabi_post_{name}")) {
        after.call_async(&mut *store, result).await?;
    }
    Ok(())
}

fn memory(store: &mut Store<Host>, instance: &Instance) -> Result<Memory> {
    instance.get_memory(store, MEMORY).ok_or_else(|| Error::msg("no memory"))
}

fn state(store: &mut Store<Host>, instance: &Instance, globals: usize) -> Result<State> {
    let memory = memory(store, instance)?.data(&*store).to_vec();
    let value = |at| {
        let global = instance.get_global(&mut *store, &format!("{GLOBAL}{at}"));
        match global.map(|global| global.get(&mut *store)) {
            Some(Val::I32(value)) => Ok(ConstExpr::i32_const(value)),
            Some(Val::I64(value)) => Ok(ConstExpr::i64_const(value)),
            Some(Val::F32(bits)) => Ok(ConstExpr::f32_const(wasm_encoder::Ieee32::new(bits))),
            Some(Val::F64(bits)) => Ok(ConstExpr::f64_const(wasm_encoder::Ieee64::new(bits))),
            _ => Err(Error::msg("a global holds a vector or a reference")),
        }
    };
    Ok(State { memory, globals: (0..globals).map(value).collect::<Result<_>>()? })
}

/// The module with this state as its initial one.
fn frozen(module: &[u8], state: &State) -> Result<Vec<u8>> {
    let mut rewritten = wasm_encoder::Module::new();
    let mut globals = state.globals.iter();
    for payload in Parser::new(0).parse_all(module) {
        let payload = payload?;
        match payload {
            Payload::MemorySection(section) => {
                let mut memories = MemorySection::new();
                for memory in section {
                    let mut ty = RoundtripReencoder.memory_type(memory?)?;
                    ensure!(ty.page_size_log2.is_none() && !ty.memory64, "has pages of another size");
                    ty.minimum = (state.memory.len() >> 16) as u64;
                    memories.memory(ty);
                }
                rewritten.section(&memories);
            }
            Payload::GlobalSection(section) => {
                let mut section_now = GlobalSection::new();
                for global in section {
                    let global = global?;
                    match if global.ty.mutable { globals.next() } else { None } {
                        Some(value) => {
                            section_now.global(RoundtripReencoder.global_type(global.ty)?, value);
                        }
                        None => RoundtripReencoder.parse_global(&mut section_now, global)?,
                    }
                }
                rewritten.section(&section_now);
            }
            // Done already; and what the segments held is in the memory.
            Payload::StartSection { .. } | Payload::DataCountSection { .. } | Payload::DataSection(_) => {}
            _ => keep(&mut rewritten, module, &payload),
        }
    }
    rewritten.section(&data(&state.memory)?);
    Ok(rewritten.finish())
}

/// What of a memory is not zero.
fn data(memory: &[u8]) -> Result<DataSection> {
    let mut section = DataSection::new();
    let (mut at, mut bytes) = (0, 0);
    while let Some(begin) = memory.get(at..).and_then(|rest| rest.iter().position(|byte| *byte != 0)) {
        let begin = at + begin;
        let rest = memory.get(begin..).unwrap_or_default();
        let end = begin
            + rest.windows(GAP).position(|window| window.iter().all(|byte| *byte == 0)).unwrap_or(rest.len());
        let segment = memory.get(begin..end).unwrap_or_default();
        bytes += segment.len();
        section.active(0, &ConstExpr::i32_const(begin as u32 as i32), segment.iter().copied());
        at = end;
    }
    ensure!(bytes <= MAX_IMAGE, "begins with {bytes} bytes of data");
    Ok(section)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segments(memory: &[u8]) -> Vec<(i32, Vec<u8>)> {
        let mut module = wasm_encoder::Module::new();
        module.section(&data(memory).unwrap());
        let module = module.finish();
        let mut found = Vec::new();
        for payload in Parser::new(0).parse_all(&module) {
            let Payload::DataSection(section) = payload.unwrap() else { continue };
            for segment in section {
                let segment = segment.unwrap();
                let wasmparser::DataKind::Active { offset_expr, .. } = segment.kind else {
                    panic!("passive")
                };
                let Operator::I32Const { value } = offset_expr.get_operators_reader().read().unwrap() else {
                    panic!("not a number")
                };
                found.push((value, segment.data.to_vec()));
            }
        }
        found
    }

    #[test]
    fn what_is_not_zero_becomes_segments() {
        let mut memory = vec![0; 1 << 16];
        assert!(segments(&memory).is_empty());
        memory[100] = 1;
        memory[101 + GAP - 1] = 2;
        memory[30_000] = 3;
        memory[65_535] = 4;
        let found = segments(&memory);
        let places: Vec<_> = found.iter().map(|(at, bytes)| (*at, bytes.len())).collect();
        assert_eq!(places, [(100, GAP + 1), (30_000, 1), (65_535, 1)]);
        let mut again = vec![0; 1 << 16];
        for (at, bytes) in found {
            again[at as usize..][..bytes.len()].copy_from_slice(&bytes);
        }
        assert!(again == memory);
    }

    #[test]
    fn an_image_is_bounded() {
        assert!(data(&vec![1; MAX_IMAGE]).is_ok());
        assert!(data(&vec![1; MAX_IMAGE + 1]).is_err());
    }
}
