//! The quickstart: a gateway in front of the demo upstream, for someone who just built it.
//!
//! It differs from any other start in three things: its files may come out of the program itself, it takes the
//! next free port when its own is taken, and it prints what to try.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::say;

/// What the quickstart consists of, as it stands in a checkout.
const FILES: [(&str, &str); 3] = [
    ("config/quickstart.yaml", include_str!("../../../config/quickstart.yaml")),
    ("scripts/hello.rhai", include_str!("../../../scripts/hello.rhai")),
    ("scripts/require-header.rhai", include_str!("../../../scripts/require-header.rhai")),
];

/// The variables in which `quickstart.yaml` finds its ports, with the ports it has otherwise.
const PORTS: [(&str, u16); 2] = [("PORTCULLIS_PORT", 8080), ("PORTCULLIS_ADMIN_PORT", 9901)];

/// How many ports are tried after a taken one.
const TRIED: u16 = 100;

/// The quickstart's files on disk, for as long as somebody works with them.
pub(crate) struct Unpacked(TempDir);

impl Unpacked {
    /// The configuration's path.
    pub(crate) fn config(&self) -> PathBuf {
        self.0.path().join("config/quickstart.yaml")
    }
}

/// Writes the files to a directory of their own.
pub(crate) fn unpack() -> io::Result<Unpacked> {
    let dir = tempfile::Builder::new().prefix("portcullis-").tempdir()?;
    let root = dir.path();
    fs::create_dir_all(root.join("config/policies"))?;
    for (name, content) in FILES {
        let path = root.join(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(path, content)?;
    }
    Ok(Unpacked(dir))
}

/// The ports to use, as variables for the configuration.
pub(crate) fn ports() -> BTreeMap<String, String> {
    let unset = PORTS.into_iter().filter(|(variable, _)| std::env::var_os(variable).is_none());
    let chosen = unset.map(|(variable, usual)| {
        let free = next_free(usual);
        if free != usual {
            say::remark(&format!("port {usual} is taken, using {free} (set {variable} to choose another)"));
        }
        (variable.to_owned(), free.to_string())
    });
    chosen.collect()
}

/// `usual`, or the first port after it that nobody has; `usual` again if all are taken.
fn next_free(usual: u16) -> u16 {
    let free = |port: &u16| TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, *port))).is_ok();
    (usual..usual.saturating_add(TRIED)).find(free).unwrap_or(usual)
}

/// What to try next. Files that are `unpacked` end with the gateway.
pub(crate) fn tour(config: &Path, unpacked: bool, gateway: SocketAddr, admin: Option<SocketAddr>) -> String {
    let dir = config.parent().unwrap_or(Path::new("."));
    let scripts = dir.parent().unwrap_or(Path::new("")).join("scripts");
    let shown =
        |path: &Path| if path.as_os_str().is_empty() { ".".to_owned() } else { path.display().to_string() };
    let (scripts, policies) = (shown(&scripts), shown(&dir.join("policies")));
    let end = if unpacked { "; these files go with it" } else { "" };
    let admin = admin.map_or(String::new(), |admin| {
        format!("\n  curl -s http://{admin}/status    # how the gateway is\n")
    });
    format!(
        "\n\
         portcullis is running at http://{gateway}, in front of a demo upstream that answers with what it receives.\n\
         Try, in another terminal:\n\
         \n  curl -i http://{gateway}/anything     # {scripts}/hello.rhai left its mark on request and response\
         \n  curl -i http://{gateway}/protected    # refused by {scripts}/require-header.rhai\
         \n  curl -i http://{gateway}/protected -H 'x-api-key: open-sesame'\
         {admin}\n\
         Watched: {config}, {scripts}, {policies}. Save a change and the next request has it:\n\
         \n  sed -i 's/Hello/Good morning/' {scripts}/hello.rhai\n\
         \nA policy dropped into {policies} (`portcullis new script my-rule`) applies by being there. Stop with Ctrl-C{end}.\n",
        config = config.display(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_brings_its_own_files() {
        let unpacked = unpack().unwrap();
        let config = unpacked.config();
        let root = config.parent().unwrap().parent().unwrap();
        for (name, content) in FILES {
            assert_eq!(fs::read_to_string(root.join(name)).unwrap(), content);
        }
        assert!(root.join("config/policies").is_dir());
        drop(unpacked);
        assert!(!root.exists());
    }

    #[test]
    fn a_taken_port_is_passed_over() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let usual = taken.local_addr().unwrap().port();
        let free = next_free(usual);
        assert!(free > usual || usual > u16::MAX - TRIED, "{free}");
    }

    #[test]
    fn the_tour_names_what_runs_and_what_is_watched() {
        let gateway = "127.0.0.1:8081".parse().unwrap();
        let text = tour(Path::new("config/quickstart.yaml"), false, gateway, "127.0.0.1:9901".parse().ok());
        assert!(text.contains("curl -i http://127.0.0.1:8081/anything"), "{text}");
        assert!(text.contains("scripts/hello.rhai") && text.contains("config/policies"), "{text}");
        assert!(text.contains("http://127.0.0.1:9901/status"), "{text}");
        assert!(!text.contains("these files go"));
        assert!(
            tour(Path::new("/tmp/x/config/a.yaml"), true, gateway, None).contains("these files go with it")
        );
    }
}
