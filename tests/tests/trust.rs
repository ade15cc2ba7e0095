//! Whose code runs: what is signed, and what nobody else could have replaced.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use portcullis_tests::tools::{has, tool};
use portcullis_tests::{Setup, run};

const POLICY: &str = "fn on_request(ctx) { return deny(403, \"signed.no\"); }";

/// A key as minisign's, made and used with `openssl`.
struct Key {
    dir: PathBuf,
    id: [u8; 8],
}

impl Key {
    fn new(dir: &Path, id: u8) -> Self {
        let dir = dir.join(id.to_string());
        fs::create_dir(&dir).unwrap();
        let key = Key { dir, id: [id; 8] };
        tool("openssl", &["genpkey", "-algorithm", "ed25519", "-out", &key.file("key")]);
        key
    }

    fn file(&self, name: &str) -> String {
        self.dir.join(name).to_str().unwrap().to_owned()
    }

    fn public(&self) -> String {
        tool(
            "openssl",
            &["pkey", "-in", &self.file("key"), "-pubout", "-outform", "DER", "-out", &self.file("pub")],
        );
        let der = fs::read(self.file("pub")).unwrap();
        self.base64(&[b"Ed".as_slice(), &self.id, &der[der.len() - 32..]].concat())
    }

    fn base64(&self, bytes: &[u8]) -> String {
        fs::write(self.file("plain"), bytes).unwrap();
        tool("openssl", &["base64", "-A", "-in", &self.file("plain")])
    }

    fn sign(&self, bytes: &[u8]) -> Vec<u8> {
        fs::write(self.file("message"), bytes).unwrap();
        let (key, message, signature) = (self.file("key"), self.file("message"), self.file("signature"));
        tool("openssl", &["pkeyutl", "-sign", "-inkey", &key, "-rawin", "-in", &message, "-out", &signature]);
        fs::read(signature).unwrap()
    }

    /// The content of a signature's file: of a hash as minisign has it today, or of the content itself as it once was.
    fn signature(&self, content: &str, hashed: bool) -> String {
        let signed = if hashed {
            fs::write(self.file("content"), content).unwrap();
            let (content, hash) = (self.file("content"), self.file("hash"));
            tool("openssl", &["dgst", "-blake2b512", "-binary", "-out", &hash, &content]);
            self.sign(&fs::read(hash).unwrap())
        } else {
            self.sign(content.as_bytes())
        };
        let comment = "timestamp:0";
        let global = self.sign(&[&signed, comment.as_bytes()].concat());
        let algorithm = if hashed { b"ED" } else { b"Ed" };
        let first = self.base64(&[algorithm.as_slice(), &self.id, &signed].concat());
        format!("untrusted comment: \n{first}\ntrusted comment: {comment}\n{}\n", self.base64(&global))
    }
}

fn config(keys: &[&str]) -> String {
    let keys = keys.join(", ");
    format!(
        "trust: {{ keys: [{keys}] }}\nplugins: [{{ rhai: {{ file: p.rhai }} }}]\nroutes: [{{ respond: {{}} }}]\n"
    )
}

/// What is said of code that is refused.
#[track_caller]
fn refusal(setup: Setup) -> String {
    let ended = setup.try_start().err().expect("it is refused");
    assert!(!ended.status.success());
    ended.err
}

#[test]
fn only_what_a_trusted_key_has_signed_runs() {
    if !has(&["openssl"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (ours, theirs) = (Key::new(dir.path(), 1), Key::new(dir.path(), 2));
    let (our, their) = (ours.public(), theirs.public());
    let signed = |keys: &[&str], signature: &str| {
        Setup::new(&config(keys)).file("p.rhai", POLICY).file("p.rhai.minisig", signature)
    };
    for hashed in [true, false] {
        let signature = ours.signature(POLICY, hashed);
        let gateway = signed(&[&their, &our], &signature).start();
        assert_eq!(gateway.get("/").status, 403);

        // What is changed after it was signed does not come in by a reload either.
        gateway.edit("p.rhai", format!("// Changed.\n{POLICY}"));
        assert!(gateway.wait_refused().contains("the file is not as it was signed"));
        assert_eq!(gateway.get("/").status, 403);
        gateway.stop();

        let refused = refusal(signed(&[&their], &signature));
        assert!(refused.contains("p.rhai.minisig` is by a key that is not trusted"), "{refused}");
        assert!(refused.contains("gateway.yaml:"), "it is located: {refused}");
    }
    // The same number, but not the same key.
    let forged = Key { id: ours.id, dir: theirs.dir };
    assert!(refusal(signed(&[&our], &forged.signature(POLICY, true))).contains("not as it was signed"));
    assert!(refusal(signed(&[&our], "nothing")).contains("is no signature of minisign"));
    let unsigned = Setup::new(&config(&[&our])).file("p.rhai", POLICY);
    assert!(refusal(unsigned).contains("must be signed"));
}

#[test]
fn a_policy_and_what_it_imports_is_signed_or_refused_whatever_it_is_called() {
    if !has(&["openssl"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let key = Key::new(dir.path(), 1);
    let importing = "import \"lib/no\" as no;\nfn on_request(ctx) { return no::no(); }";
    let library = "fn no() { deny(403, \"signed.no\") }";
    let trust = format!(
        "trust: {{ keys: [{}] }}\npolicies: {{ dir: policies }}\nroutes: [{{ respond: {{}} }}]\n",
        key.public()
    );
    let setup = || {
        Setup::new(&trust)
            .file("policies/10-p.rhai", importing)
            .file("policies/10-p.rhai.minisig", key.signature(importing, true))
            .file("policies/lib/no.rhai", library)
    };
    assert!(refusal(setup()).contains("no.rhai` must be signed"));
    let gateway = setup().file("policies/lib/no.rhai.minisig", key.signature(library, true)).start();
    assert_eq!(gateway.get("/").status, 403);
    assert!(!gateway.log().contains("this is no policy"));
    gateway.stop();
    let renamed = config(&[&key.public()]).replace("p.rhai", "p.txt");
    assert!(refusal(Setup::new(&renamed).file("p.txt", POLICY)).contains("p.txt` must be signed"));
}

#[test]
fn a_trust_that_means_nothing_is_refused() {
    let setup = |trust: &str| Setup::new(&format!("trust: {trust}\nroutes: [{{ respond: {{}} }}]\n"));
    let shown = refusal(setup("{ keys: [RWnonsense], kinds: [wsam] }"));
    assert!(shown.contains("no public key of minisign") && shown.contains("`wsam` is no kind"), "{shown}");
    assert!(refusal(setup("{ keys: [] }")).contains("at least one key is needed"));
}

#[test]
fn code_in_a_directory_that_is_open_to_everybody_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let code = dir.path().join("open/code");
    fs::create_dir_all(&code).unwrap();
    fs::write(code.join("p.rhai"), POLICY).unwrap();
    fs::write(code.join("10-q.rhai"), POLICY).unwrap();
    let config = dir.path().join("gateway.yaml");
    let check = |mode: u32| {
        fs::set_permissions(dir.path().join("open"), fs::Permissions::from_mode(mode)).unwrap();
        run(&["check", config.to_str().unwrap()])
    };
    let own = "listeners: [{ bind: 127.0.0.1:0 }]\nroutes: [{ respond: {} }]\n";
    for what in ["plugins: [{ rhai: { file: open/code/p.rhai } }]\n", "policies: { dir: open/code }\n"] {
        fs::write(&config, format!("{what}{own}")).unwrap();
        let refused = check(0o777);
        let said = format!("{}{}", refused.out, refused.err);
        assert!(!refused.status.success() && said.contains("open` can be written by everybody"), "{said}");
        // Whoever may not remove others' files may not replace them.
        for mode in [0o1777, 0o755] {
            let checked = check(mode);
            assert!(checked.status.success(), "{mode:o}: {}{}", checked.out, checked.err);
        }
    }
    fs::write(code.join("10-q.yaml"), "on_error: allow\n").unwrap();
    fs::set_permissions(code.join("10-q.yaml"), fs::Permissions::from_mode(0o666)).unwrap();
    let refused = check(0o755);
    assert!(!refused.status.success() && format!("{}{}", refused.out, refused.err).contains("10-q.yaml"));
}
