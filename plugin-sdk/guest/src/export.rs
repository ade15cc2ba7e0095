//! What [`export!`](crate::export) expands to, and how a policy is made in the guest.

use crate::bindings::portcullis::policy::host;
use crate::{Exchange, Level, Policy, Result, config};

/// Exports a policy with the hooks it names, e.g. `export!(Block: on_request, on_log);`.
#[macro_export]
macro_rules! export {
    ($policy:ty: $($hook:ident),+ $(,)?) => {
        #[doc(hidden)]
        struct PortcullisExports;

        const _: () = {
            ::std::thread_local! {
                static POLICY: ::std::cell::RefCell<::std::option::Option<$policy>> =
                    const { ::std::cell::RefCell::new(None) };
            }

            impl $crate::bindings::configuration::exports::portcullis::policy::configuration::Guest
                for PortcullisExports
            {
                fn configure() -> ::std::result::Result<(), String> {
                    $crate::export::with(&POLICY, |_| Ok(()))
                }
            }

            $($crate::export_hook!($hook);)+
        };

        $crate::bindings::configuration::export!(PortcullisExports);
        $($crate::bindings::$hook::export!(PortcullisExports);)+
    };
}

/// One hook of [`export!`](crate::export).
#[doc(hidden)]
#[macro_export]
macro_rules! export_hook {
    (on_connection) => {
        impl $crate::bindings::on_connection::exports::portcullis::policy::on_connection::Guest
            for PortcullisExports
        {
            fn on_connection(
                connection: $crate::Connection,
            ) -> ::std::result::Result<$crate::Admission, String> {
                $crate::export::with(&POLICY, |policy| $crate::Policy::on_connection(policy, connection))
            }
        }
    };
    (on_log) => {
        $crate::export_hook!(on_log -> ());
    };
    ($hook:ident) => {
        $crate::export_hook!($hook -> $crate::Verdict);
    };
    ($hook:ident -> $answer:ty) => {
        impl $crate::bindings::$hook::exports::portcullis::policy::$hook::Guest for PortcullisExports {
            fn $hook() -> ::std::result::Result<$answer, String> {
                $crate::export::with(&POLICY, |policy| {
                    $crate::Policy::$hook(policy, $crate::export::exchange())
                })
            }
        }
    };
}

type Place<P> = std::thread::LocalKey<std::cell::RefCell<Option<P>>>;

/// Calls `hook` on this instance's policy, which is made at the first call.
pub fn with<P: Policy, T>(
    place: &'static Place<P>,
    hook: impl FnOnce(&mut P) -> Result<T>,
) -> std::result::Result<T, String> {
    place.with_borrow_mut(|policy| {
        if policy.is_none() {
            *policy = Some(make()?);
        }
        policy.as_mut().map_or_else(
            || Err("there is no policy".into()),
            |policy| hook(policy).map_err(|error| error.to_string()),
        )
    })
}

/// The handle on the exchange that every hook gets.
pub fn exchange() -> &'static Exchange {
    &Exchange::CURRENT
}

fn make<P: Policy>() -> std::result::Result<P, String> {
    // In Wasm a panic ends in a trap that says nothing; the log says what happened.
    std::panic::set_hook(Box::new(|panic| {
        host::log(Level::Error, &panic.to_string().replacen('\n', " ", 1))
    }));
    let text = host::config();
    // A policy without configuration is `()`, which JSON spells `null`.
    let text = if std::mem::size_of::<P::Config>() == 0 && text == "{}" { "null" } else { &text };
    let config = serde_json::from_str(text).map_err(|error| config::fault(text, &error))?;
    P::new(config).map_err(|error| error.to_string())
}
