//! Whose code runs: what is signed, and what nobody else could have replaced.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use portcullis_tests::tools::{guest, has, tool};
use portcullis_tests::{Gateway, Setup, run};

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
    fn signature(&self, content: impl AsRef<[u8]>, hashed: bool) -> String {
        let signed = if hashed {
            fs::write(self.file("content"), content.as_ref()).unwrap();
            let (content, hash) = (self.file("content"), self.file("hash"));
            tool("openssl", &["dgst", "-blake2b512", "-binary", "-out", &hash, &content]);
            self.sign(&fs::read(hash).unwrap())
        } else {
            self.sign(content.as_ref())
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

/// A gateway with a module, `m.wasm`.
fn with_module(trust: &str, options: &str) -> String {
    format!(
        "{trust}plugins: [{{ wasm: {{ file: m.wasm, config: {{ greeting: hello }}{options} }} }}]\n\
         routes: [{{ respond: {{ status: 204 }} }}]\n"
    )
}

/// Refused on a start, and by `check`.
#[track_caller]
fn never_runs(setup: impl Fn() -> Setup, why: &str) {
    for setup in [setup(), setup().arguments(&["check", "gateway.yaml"])] {
        let shown = refusal(setup);
        assert!(shown.contains(why), "{shown}");
    }
}

/// Refused by a reload, and what ran before still does.
#[track_caller]
fn not_reloaded(gateway: &Gateway, status: u16, why: &str) {
    assert_ne!(gateway.admin("POST", "/reload").status, 200);
    let shown = gateway.wait_refused();
    assert!(shown.contains(why), "{shown}");
    assert_eq!((gateway.get("/").status, gateway.generation()), (status, 1));
}

/// The same code in another file: with a custom section more.
fn tampered(module: &[u8]) -> Vec<u8> {
    [module, &[0, 2, 1, b'x']].concat()
}

#[test]
fn a_module_runs_as_it_was_signed_or_not_at_all() {
    let Some(module) = guest("conformance").filter(|_| has(&["openssl"])) else { return };
    let dir = tempfile::tempdir().unwrap();
    let (ours, theirs) = (Key::new(dir.path(), 1), Key::new(dir.path(), 2));
    let config = with_module(&format!("trust: {{ keys: [{}] }}\n", ours.public()), "");
    let (our, their) = (ours.signature(&module, true), theirs.signature(&module, true));
    let other = tampered(&module);
    let setup = |content: &[u8], signature: &str| {
        Setup::new(&config).file("m.wasm", content).file("m.wasm.minisig", signature)
    };
    never_runs(|| setup(&other, &our), "not as it was signed");
    never_runs(|| setup(&module, &their), "m.wasm.minisig` is by a key that is not trusted");
    never_runs(|| Setup::new(&config).file("m.wasm", &module), "m.wasm` must be signed");
    let gateway = setup(&module, &our).start();
    gateway.edit("m.wasm", &other);
    not_reloaded(&gateway, 204, "not as it was signed");
}

#[test]
fn a_module_runs_as_it_is_pinned_or_not_at_all() {
    let Some(module) = guest("conformance").filter(|_| has(&["openssl"])) else { return };
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("m.wasm");
    fs::write(&file, &module).unwrap();
    let digest = tool("openssl", &["dgst", "-sha256", "-r", file.to_str().unwrap()]);
    let config = with_module("", &format!(", digest: \"sha256:{}\"", &digest[..64]));
    let other = tampered(&module);
    never_runs(|| Setup::new(&config).file("m.wasm", &other), "the file is not the one that is pinned");
    let gateway = Setup::new(&config).file("m.wasm", &module).start();
    gateway.edit("m.wasm", &other);
    not_reloaded(&gateway, 204, "the file is not the one that is pinned");
}

#[test]
fn code_that_becomes_open_to_everybody_is_not_reloaded() {
    let Some(module) = guest("conformance") else { return };
    let script = "plugins: [{ rhai: { file: p.rhai } }]\nroutes: [{ respond: {} }]\n";
    let dropped = "policies: { dir: policies }\nroutes: [{ respond: {} }]\n";
    let open = "can be written by everybody";
    for (config, path, status, why) in [
        (script, "p.rhai", 403, open),
        (&with_module("", ""), "m.wasm", 204, open),
        (dropped, "policies/10-p.rhai", 403, open),
        (dropped, "policies", 403, "everybody can put policies into"),
    ] {
        let setup = || {
            let setup = Setup::new(config).file("p.rhai", POLICY).file("m.wasm", &module);
            setup.file("policies/10-p.rhai", POLICY)
        };
        let opened = |dir: &Path| {
            let at = dir.join(path);
            let mode = if at.is_dir() { 0o777 } else { 0o666 };
            fs::set_permissions(at, fs::Permissions::from_mode(mode)).unwrap();
        };
        never_runs(
            || {
                let setup = setup();
                opened(setup.dir());
                setup
            },
            why,
        );
        let gateway = setup().start();
        opened(gateway.dir());
        not_reloaded(&gateway, status, why);
    }
}
