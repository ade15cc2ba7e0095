//! Where files are that nobody named: the configuration, the state directory, and what was good last.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use portcullis_config::Loaded;
use portcullis_control::LastGood;

use crate::process;

/// Names the configuration.
pub(crate) const CONFIG_VARIABLE: &str = "PORTCULLIS_CONFIG";

/// The configuration in the working directory.
const CONFIG_FILE: &str = "portcullis.yaml";

/// The quickstart in a checkout.
const QUICKSTART_FILE: &str = "config/quickstart.yaml";

/// Which configuration is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Configuration {
    /// This file.
    File(PathBuf),
    /// The quickstart of this checkout.
    Quickstart(PathBuf),
    /// The quickstart inside the program.
    Embedded,
}

/// The configuration that is meant when `named` was said.
pub(crate) fn configuration(named: Option<PathBuf>) -> Configuration {
    let here = env::current_dir().unwrap_or_default();
    let program = env::current_exe().unwrap_or_default();
    choose(named, env::var_os(CONFIG_VARIABLE), &here, &program)
}

fn choose(named: Option<PathBuf>, variable: Option<OsString>, here: &Path, program: &Path) -> Configuration {
    let variable = variable.filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(file) = named.or(variable) {
        return Configuration::File(file);
    }
    if here.join(CONFIG_FILE).is_file() {
        return Configuration::File(CONFIG_FILE.into());
    }
    // A checkout is the working directory or above it; a program built in one stands in `target/release`.
    let built_in = program.ancestors().nth(3);
    match here.ancestors().chain(built_in).find(|root| is_checkout(root)) {
        Some(root) => Configuration::Quickstart(short(&root.join(QUICKSTART_FILE), here)),
        None => Configuration::Embedded,
    }
}

fn is_checkout(root: &Path) -> bool {
    root.join("Cargo.toml").is_file()
        && root.join("core/gateway").is_dir()
        && root.join(QUICKSTART_FILE).is_file()
}

/// The path as someone in `here` would type it.
fn short(path: &Path, here: &Path) -> PathBuf {
    path.strip_prefix(here).unwrap_or(path).to_owned()
}

/// The state directory when the configuration names none: the service manager's, else the user's.
pub(crate) fn state_dir() -> PathBuf {
    choose_state_dir(|name| env::var_os(name))
        .unwrap_or_else(|| env::temp_dir().join(format!("portcullis-{}", process::user_id())))
}

/// Where the last good inputs of a configuration are kept; `loaded` is what can be read of it. A
/// directory from the service manager comes before the configuration's own, because it can be found
/// also when the configuration can't be read.
pub(crate) fn last_good(config: &Path, loaded: Option<&Loaded>) -> LastGood {
    let named = loaded.and_then(|loaded| Some(loaded.resolve(loaded.config.state_dir.as_deref()?)));
    let dir = managed_state_dir(|name| env::var_os(name)).or(named).unwrap_or_else(state_dir);
    LastGood::new(&dir, config)
}

/// The service manager may give several, separated by colons.
fn managed_state_dir(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let first = variable("STATE_DIRECTORY").and_then(|all| env::split_paths(&all).next());
    first.filter(|path| path.is_absolute())
}

fn choose_state_dir(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let absolute = |name| variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
    managed_state_dir(&variable)
        .or_else(|| absolute("XDG_STATE_HOME").map(|home| home.join("portcullis")))
        .or_else(|| absolute("HOME").map(|home| home.join(".local/state/portcullis")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn checkout() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("core/gateway/src")).unwrap();
        fs::create_dir_all(root.path().join("config")).unwrap();
        fs::write(root.path().join("Cargo.toml"), "").unwrap();
        fs::write(root.path().join(QUICKSTART_FILE), "").unwrap();
        root
    }

    #[test]
    fn what_is_named_wins_then_the_variable_then_the_working_directory() {
        let root = checkout();
        let file = |name: &str| Configuration::File(name.into());
        let chosen = |named: Option<&str>, variable: Option<&str>| {
            choose(named.map(Into::into), variable.map(Into::into), root.path(), Path::new("/bin/portcullis"))
        };
        assert_eq!(chosen(Some("a.yaml"), Some("b.yaml")), file("a.yaml"));
        assert_eq!(chosen(None, Some("b.yaml")), file("b.yaml"));
        assert_eq!(chosen(None, Some("")), Configuration::Quickstart(QUICKSTART_FILE.into()));
        fs::write(root.path().join(CONFIG_FILE), "").unwrap();
        assert_eq!(chosen(None, None), file(CONFIG_FILE));
    }

    #[test]
    fn a_checkout_is_found_from_below_and_from_its_own_program() {
        let root = checkout();
        let quickstart = Configuration::Quickstart(root.path().join(QUICKSTART_FILE));
        let below = root.path().join("core/gateway");
        assert_eq!(choose(None, None, &below, Path::new("/bin/portcullis")), quickstart);
        let program = root.path().join("target/release/portcullis");
        assert_eq!(choose(None, None, Path::new("/nonexistent"), &program), quickstart);
        assert_eq!(
            choose(None, None, Path::new("/nonexistent"), Path::new("/bin/portcullis")),
            Configuration::Embedded
        );
    }

    #[test]
    fn state_goes_where_the_service_manager_says_else_to_the_user() {
        let chosen = |set: &[(&str, &str)]| {
            choose_state_dir(|name| {
                set.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into())
            })
        };
        let home = ("HOME", "/home/u");
        assert_eq!(chosen(&[home, ("STATE_DIRECTORY", "/var/lib/a:/var/lib/b")]), Some("/var/lib/a".into()));
        assert_eq!(chosen(&[home, ("XDG_STATE_HOME", "/state")]), Some("/state/portcullis".into()));
        assert_eq!(
            chosen(&[home, ("XDG_STATE_HOME", "relative")]),
            Some("/home/u/.local/state/portcullis".into())
        );
        assert_eq!(chosen(&[]), None);
    }
}
