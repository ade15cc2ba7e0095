//! What `portcullis check` says of broken inputs: each directory in `cases/` holds a configuration with its
//! files, and in `expected.txt` what is printed, the directory's own path left out. To write the
//! expectations anew after a change of wording: `PORTCULLIS_BLESS=1 cargo test -p portcullis-tests --test cases`.

use std::fs;
use std::path::Path;

use portcullis_tests::{Setup, here, run_in};

const BLESS: &str = "PORTCULLIS_BLESS";

#[test]
fn broken_inputs_are_shown_where_they_are() {
    let mut wrong = Vec::new();
    let mut count = 0;
    for entry in fs::read_dir(here().join("cases")).unwrap() {
        let dir = entry.unwrap().path();
        count += 1;
        let said = checked(&dir);
        let expected = dir.join("expected.txt");
        if std::env::var_os(BLESS).is_some() {
            fs::write(&expected, &said).unwrap();
        }
        let expected = fs::read_to_string(&expected).unwrap_or_default();
        if said != expected {
            wrong.push(format!("{}\n--- expected\n{expected}--- said\n{said}", dir.display()));
        }
    }
    assert!(count >= 15, "only {count} cases");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What is said of a case, which must be refused with a place and without a panic.
fn checked(case: &Path) -> String {
    let ended = run_in(case, &["check", "gateway.yaml"]);
    assert_eq!(ended.status.code(), Some(2), "{}: {}", case.display(), ended.err);
    assert!(ended.out.is_empty(), "{}: {}", case.display(), ended.out);
    let said = ended.err.replace(&format!("{}/", case.display()), "");
    assert!(said.contains("error: ") && said.contains("--> "), "{}: {said}", case.display());
    assert!(!said.contains("panicked"), "{}: {said}", case.display());
    said
}

#[test]
fn a_gateway_refuses_to_start_with_what_check_refuses() {
    let case = here().join("cases/script-syntax");
    let config = fs::read_to_string(case.join("gateway.yaml")).unwrap();
    let script = fs::read_to_string(case.join("tenant.rhai")).unwrap();
    let ended = Setup::new(&config).file("tenant.rhai", script).try_start().err().unwrap();
    assert_eq!(ended.status.code(), Some(2));
    assert!(ended.err.contains("tenant.rhai:4:25"), "{}", ended.err);
}

#[test]
fn noise_is_refused_without_a_panic() {
    let dir = tempfile::tempdir().unwrap();
    let deep = "[".repeat(100_000);
    let bomb = "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b]\n\
                d: &d [*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d]\nlisteners: [*e,*e,*e,*e,*e,*e]\n";
    let noise: Vec<u8> = (0..=255).cycle().take(10_000).collect();
    for (name, content) in [
        ("noise", noise.as_slice()),
        ("deep", deep.as_bytes()),
        ("bomb", bomb.as_bytes()),
        ("scalar", b"42"),
        ("list", b"- a\n- b\n"),
        ("null", b"listeners:\nroutes:\nplugins:\n"),
    ] {
        fs::write(dir.path().join(name), content).unwrap();
        let ended = run_in(dir.path(), &["check", name]);
        assert_eq!(ended.status.code(), Some(2), "{name}: {ended:?}");
        assert!(ended.err.starts_with("error: ") && ended.err.len() < 20_000, "{name}: {}", ended.err);
    }
    fs::create_dir(dir.path().join("directory")).unwrap();
    for name in ["directory", "missing"] {
        let ended = run_in(dir.path(), &["check", name]);
        assert!(ended.status.code() == Some(2) && ended.err.contains(name), "{name}: {}", ended.err);
    }
}
