//! Modules written by hand, whose every instruction is known.

use wit_component::StringEncoding;
use wit_parser::Resolve;

/// A core module with the component type of the given exports, from its functions in text form. Its
/// memory is zero at 1024, which as a hook's answer means `continue`.
pub(crate) fn module(exports: &[&str], body: &str) -> Vec<u8> {
    importing(r#"(import "portcullis:policy/exchange@0.1.0" "id" (func $id (param i32)))"#, exports, body)
}

/// The same with imports of its own.
pub(crate) fn importing(imports: &str, exports: &[&str], body: &str) -> Vec<u8> {
    let wat = format!(
        r#"(module
            {imports}
            (memory (export "memory") 1)
            (global $calls (mut i32) (i32.const 0))
            (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) (i32.const 4096))
            {body})"#
    );
    let mut module = wat::parse_str(wat).unwrap();
    let mut resolve = Resolve::default();
    resolve.push_path(concat!(env!("CARGO_MANIFEST_DIR"), "/../../plugin-sdk/guest/wit")).unwrap();
    let includes: String =
        exports.iter().map(|name| format!("include portcullis:policy/exports-{name}@0.1.0;\n")).collect();
    let world = format!(
        "package test:guest;\nworld guest {{ include portcullis:policy/imports@0.1.0;\n{includes} }}"
    );
    let package = resolve.push_str("guest.wit", &world).unwrap();
    let world = resolve.select_world(&[package], Some("guest")).unwrap();
    wit_component::embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8).unwrap();
    module
}

/// One hook of such a module.
pub(crate) fn hook(name: &str, code: &str) -> String {
    format!(r#"(func (export "portcullis:policy/{name}@0.1.0#{name}") (result i32) {code} (i32.const 1024))"#)
}
