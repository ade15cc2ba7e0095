//! `key`: keys for the `api_key` plugin.

use std::process::ExitCode;

use portcullis_plugin::{Secret, SecretRef};
use portcullis_plugins::{HashKey, NewKey};
use serde_json::{Map, Value};

use super::{Failure, NewKeyOptions};
use crate::say;

/// `portcullis key new --id ID`
pub(super) fn new(options: NewKeyOptions) -> Result<ExitCode, Failure> {
    let NewKeyOptions { id, role, scope, expires, metadata, hash_key } = options;
    let secret = read(&hash_key)?;
    let hash_key = HashKey::new(&secret).map_err(Failure::Run)?;
    let metadata = metadata.iter().map(|pair| entry(pair)).collect::<Result<Map<_, _>, _>>()?;
    let NewKey { key, line } =
        NewKey::make(&hash_key, &id, role, scope, expires, metadata).map_err(Failure::Run)?;
    say::remark(
        "the key, which is shown this once, and the line to keep of it, for `keys` or a file of the `api_key` plugin:",
    );
    say::result(&format!("{key}\n{line}"));
    Ok(ExitCode::SUCCESS)
}

fn read(secret: &str) -> Result<Secret, Failure> {
    let read = match SecretRef::try_from(secret.to_owned()).map_err(|error| Failure::Run(error.to_owned()))? {
        SecretRef::Env(name) => {
            std::env::var(&name).map_err(|_| format!("environment variable `{name}` is not set"))
        }
        SecretRef::File(path) => {
            std::fs::read_to_string(&path).map_err(|error| format!("`{path}` can't be read: {error}"))
        }
    };
    let text = read.map_err(Failure::Run)?;
    let text = text.strip_suffix('\n').unwrap_or(&text);
    Ok(Secret::new(text.strip_suffix('\r').unwrap_or(text).as_bytes()))
}

/// A claim as `NAME=VALUE`, where the value is JSON or else text.
fn entry(pair: &str) -> Result<(String, Value), Failure> {
    let (name, value) =
        pair.split_once('=').ok_or_else(|| Failure::Run(format!("`{pair}` is not `NAME=VALUE`")))?;
    let value = serde_json::from_str(value).unwrap_or_else(|_| Value::from(value));
    Ok((name.to_owned(), value))
}
