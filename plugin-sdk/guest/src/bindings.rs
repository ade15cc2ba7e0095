//! What `wit-bindgen` makes of the WIT: the imports, and one module per export, so that a policy
//! exports only the hooks it names.
#![allow(unsafe_code, missing_docs, unreachable_pub, clippy::all, reason = "generated")]

wit_bindgen::generate!({ path: "wit", world: "imports" });

macro_rules! exports {
    ($hook:ident, $world:literal, $module:literal $(, $with:tt)?) => {
        pub mod $hook {
            wit_bindgen::generate!({
                path: "wit",
                world: $world,
                pub_export_macro: true,
                export_macro_name: "export",
                default_bindings_module: $module,
                $(with: $with)?
            });
        }
    };
    (typed $hook:ident, $world:literal, $module:literal) => {
        exports!($hook, $world, $module, {
            "portcullis:policy/types@0.1.0": crate::bindings::portcullis::policy::types,
        });
    };
}

exports!(configuration, "exports-configuration", "portcullis_guest::bindings::configuration");
exports!(typed on_connection, "exports-on-connection", "portcullis_guest::bindings::on_connection");
exports!(typed on_request, "exports-on-request", "portcullis_guest::bindings::on_request");
exports!(typed on_request_body, "exports-on-request-body", "portcullis_guest::bindings::on_request_body");
exports!(typed on_upstream, "exports-on-upstream", "portcullis_guest::bindings::on_upstream");
exports!(typed on_response, "exports-on-response", "portcullis_guest::bindings::on_response");
exports!(typed on_response_body, "exports-on-response-body", "portcullis_guest::bindings::on_response_body");
exports!(on_log, "exports-on-log", "portcullis_guest::bindings::on_log");
