//! `check`: everything that is wrong with a configuration, at once.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use portcullis_config::Diagnostics;
use portcullis_control::CheckSummary;
use serde_json::json;

use super::{ConfigOption, Failure};
use crate::places::{self, Configuration};
use crate::quickstart::Unpacked;
use crate::{kinds, process, quickstart, say};

/// `portcullis check`
pub(super) fn check(config: &ConfigOption, json: bool) -> Result<ExitCode, Failure> {
    process::install_crypto();
    let file = file(config)?;
    let path = file.path();
    let checked = portcullis_control::check(&path, &kinds::registry(), BTreeMap::new());
    if json {
        return Ok(as_json(&checked));
    }
    let summary = checked.map_err(Failure::Files)?;
    if !summary.warnings.is_empty() {
        say::remark(&summary.warnings.render(say::remark_color()));
    }
    let counts = [
        (summary.listeners, "listener"),
        (summary.routes, "route"),
        (summary.upstreams, "upstream"),
        (summary.plugins, "plugin"),
        (summary.files, "file"),
    ];
    let counts = counts.map(|(count, what)| format!("{count} {what}{}", if count == 1 { "" } else { "s" }));
    say::result(&format!("{}: ok ({})", path.display(), counts.join(", ")));
    Ok(ExitCode::SUCCESS)
}

fn as_json(checked: &Result<CheckSummary, Diagnostics>) -> ExitCode {
    let (ok, findings) = match checked {
        Ok(summary) => (true, &summary.warnings),
        Err(errors) => (false, errors),
    };
    say::result(&format!("{:#}", json!({ "ok": ok, "findings": findings })));
    if ok { ExitCode::SUCCESS } else { ExitCode::from(2) }
}

/// A configuration file.
pub(super) enum ConfigFile {
    /// That was there.
    Found(PathBuf),
    /// That ends with this.
    Unpacked(Unpacked),
}

impl ConfigFile {
    /// Its path.
    pub(super) fn path(&self) -> PathBuf {
        match self {
            ConfigFile::Found(path) => path.clone(),
            ConfigFile::Unpacked(unpacked) => unpacked.config(),
        }
    }
}

/// The file that is meant; the quickstart's own if none is.
pub(super) fn file(config: &ConfigOption) -> Result<ConfigFile, Failure> {
    match places::configuration(config.named()) {
        Configuration::File(path) | Configuration::Quickstart(path) => Ok(ConfigFile::Found(path)),
        Configuration::Embedded => quickstart::unpack()
            .map(ConfigFile::Unpacked)
            .map_err(|error| Failure::Run(format!("the quickstart can't be written: {error}"))),
    }
}
