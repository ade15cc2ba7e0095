//! Tools that are not ours, and what tests make with them. A test asks [`has`] first, and is left out
//! where a tool is missing.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::{Output, repository};

/// Set by `tests/run`, which installs what is needed: then nothing may be left out.
const REQUIRE: &str = "PORTCULLIS_REQUIRE_EXTRAS";

/// Whether all of these programs are there. If not, the test that asks is to be left out, which this
/// function says, or fails for where everything is required.
#[track_caller]
pub fn has(programs: &[&str]) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let missing = programs.iter().find(|program| !dirs.iter().any(|dir| dir.join(program).is_file()));
    missing.is_none_or(|program| left_out(program))
}

/// The Python that the system's packages are for.
pub const PYTHON: &str = "/usr/bin/python3";

/// Whether that has a module. If not, the test that asks is to be left out.
#[track_caller]
pub fn has_module(module: &str) -> bool {
    let import =
        Command::new(PYTHON).args(["-c", &format!("import {module}")]).stderr(Stdio::null()).status();
    import.is_ok_and(|status| status.success()) || left_out(&format!("Python's {module}"))
}

/// A guest, which `tests/run` has built; none if it is missing and the test is to be left out.
#[track_caller]
pub fn guest(name: &str) -> Option<Vec<u8>> {
    let file = format!("target/guests/{name}.wasm");
    match fs::read(repository().join(&file)) {
        Ok(module) => Some(module),
        Err(_) => {
            left_out(&file);
            None
        }
    }
}

/// A Python with gRPC, which `tests/grpc/install` installs; none if it is missing and the test is to be left out.
#[track_caller]
pub fn grpc() -> Option<PathBuf> {
    installed("target/grpc/bin/python3")
}

/// A file that something below `tests` installs; none if it is missing and the test is to be left out.
#[track_caller]
pub fn installed(file: &str) -> Option<PathBuf> {
    let path = repository().join(file);
    if path.is_file() {
        return Some(path);
    }
    left_out(file);
    None
}

/// Envoy, which `tests/envoy/install` installs; none if it is missing and the test is to be left out.
#[track_caller]
pub fn envoy() -> Option<PathBuf> {
    let pythons = fs::read_dir(repository().join("target/envoy/lib")).into_iter().flatten().flatten();
    let mut programs = pythons.map(|python| python.path().join("site-packages/envoy/_bin/envoy"));
    let found = programs.find(|program| program.is_file());
    if found.is_none() {
        left_out("target/envoy");
    }
    found
}

/// Says that the running test is left out for want of something.
#[track_caller]
fn left_out(missing: &str) -> bool {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test");
    assert!(std::env::var_os(REQUIRE).is_none(), "{test} needs {missing}, see `tests/run --help`");
    eprintln!("left out: {test}: needs {missing}");
    false
}

/// Runs a tool that must succeed; returns its standard output.
#[track_caller]
pub fn tool(program: &str, arguments: &[&str]) -> String {
    let output = attempt(program, arguments);
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}\n{}{}",
        output.status,
        output.out,
        output.err
    );
    output.out
}

/// Runs a tool that may fail.
#[track_caller]
pub fn attempt(program: &str, arguments: &[&str]) -> Output {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Output { status: output.status, out: text(&output.stdout), err: text(&output.stderr) }
}

/// A certificate authority that issues what a test needs, with `openssl`.
pub struct Authority {
    dir: PathBuf,
}

impl Authority {
    /// An authority whose files are in `dir`: its own certificate is `ca.pem`.
    pub fn new(dir: &Path) -> Self {
        fs::create_dir_all(dir).unwrap();
        let (key, cert) = (path(dir, "ca.key"), path(dir, "ca.pem"));
        let curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
        let subject = ["-subj", "/CN=test authority", "-days", "2", "-keyout", &key, "-out", &cert];
        tool("openssl", &[["req", "-x509"].as_slice(), &curve, &subject].concat());
        Authority { dir: dir.to_owned() }
    }

    /// A certificate `NAME.pem` with its key `NAME.key` for a host name.
    pub fn issue(&self, name: &str) {
        let file = |ending: &str| path(&self.dir, &format!("{name}.{ending}"));
        let (key, ask, cert, extensions) = (file("key"), file("csr"), file("pem"), file("ext"));
        fs::write(
            &extensions,
            format!("subjectAltName=DNS:{name}\nextendedKeyUsage=serverAuth,clientAuth\n"),
        )
        .unwrap();
        let curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
        let subject = format!("/CN={name}");
        tool(
            "openssl",
            &[["req"].as_slice(), &curve, &["-subj", &subject, "-keyout", &key, "-out", &ask]].concat(),
        );
        let (ca, ca_key) = (self.ca(), path(&self.dir, "ca.key"));
        let by = ["-CA", &ca, "-CAkey", &ca_key, "-CAcreateserial", "-days", "2", "-extfile", &extensions];
        tool("openssl", &[["x509", "-req", "-in", &ask, "-out", &cert].as_slice(), &by].concat());
    }

    /// The authority's own certificate.
    pub fn ca(&self) -> String {
        path(&self.dir, "ca.pem")
    }

    /// A file of this authority's.
    pub fn file(&self, name: &str) -> String {
        path(&self.dir, name)
    }
}

fn path(dir: &Path, name: &str) -> String {
    dir.join(name).to_str().unwrap().to_owned()
}
