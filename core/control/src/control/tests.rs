use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::time::Duration;

use super::*;
use crate::testing::{KINDS, NoSinks, Site};

/// Longer than any machine takes; only a failing test waits so long.
const LONG: Duration = Duration::from_secs(30);

const POLICIES: &str = "policies: { dir: policies }\nroutes: [{ respond: { status: 204 } }]\n";

struct Gateway {
    site: Site,
    control: Control,
    status: watch::Receiver<Arc<Status>>,
}

impl Gateway {
    async fn start(site: Site) -> Self {
        let metrics = Arc::new(Metrics::new(1));
        let plane = Arc::new(DataPlane::new(1, metrics.clone(), Vec::new()).unwrap());
        let control = Control::start(options(&site), Registry::new(&[KINDS]), plane, metrics).await.unwrap();
        Gateway { site, status: control.subscribe(), control }
    }

    /// Waits until the status is as wanted.
    async fn until(&mut self, wanted: impl FnMut(&Arc<Status>) -> bool) -> Arc<Status> {
        let status = tokio::time::timeout(LONG, self.status.wait_for(wanted)).await;
        status.expect("the status in time").expect("a control plane").clone()
    }

    /// A client that has asked for a path.
    fn asking(&self, path: &str) -> TcpStream {
        let address = self.status.borrow().listeners[0].addresses[0].actual.to_string();
        let mut client = TcpStream::connect(address).unwrap();
        client.set_read_timeout(Some(LONG)).unwrap();
        write!(client, "GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").unwrap();
        client
    }

    /// What a client gets.
    fn body(&self) -> String {
        let answer = answer(self.asking("/"));
        answer.rsplit("\r\n").next().unwrap_or_default().to_owned()
    }

    fn names(&self) -> Vec<String> {
        self.status.borrow().plugins.iter().map(|plugin| plugin.name.to_string()).collect()
    }
}

fn answer(mut client: TcpStream) -> String {
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    answer
}

fn options(site: &Site) -> Options {
    Options {
        config: site.config(),
        state_dir: None,
        last_good: None,
        fall_back: false,
        variables: BTreeMap::new(),
        log_sinks: Arc::new(NoSinks),
    }
}

#[tokio::test]
async fn an_edited_script_changes_the_next_answer() {
    let site = Site::new(POLICIES);
    site.write("policies/10-a.script", "hello");
    let mut gateway = Gateway::start(site).await;
    assert_eq!(gateway.body(), "hello");
    gateway.site.write("policies/10-a.script", "goodbye");
    let status = gateway.until(|status| status.generation == 2).await;
    assert_eq!(gateway.body(), "goodbye");
    assert_eq!((status.reloads.applied, status.reloads.refused), (1, 0));
}

#[tokio::test]
async fn the_one_worker_serves_others_while_a_plugin_computes() {
    let site = Site::new(POLICIES);
    let gate = site.path("gate");
    site.configure(&format!("plugins: [{{ gated: {{ gate: {} }} }}]\n{POLICIES}", gate.display()));
    let listener = UnixListener::bind(gate).unwrap();
    let gateway = Gateway::start(site).await;
    let computed = gateway.asking("/gated");
    let (held, _) = listener.accept().unwrap();
    assert!(answer(gateway.asking("/other")).starts_with("HTTP/1.1 204 "));
    drop(held);
    assert!(answer(computed).starts_with("HTTP/1.1 204 "));
}

#[tokio::test]
async fn one_broken_script_among_many_keeps_the_old_generation() {
    let site = Site::new(POLICIES);
    for number in 10..40 {
        site.write(&format!("policies/{number}-p{number}.script"), "hello");
    }
    let mut gateway = Gateway::start(site).await;
    gateway.site.write("policies/10-p10.script", "new");
    gateway.site.write("policies/25-p25.script", "fine\n  !\n");
    let status = gateway.until(|status| status.last_error.is_some()).await;
    let error = status.last_error.as_ref().unwrap();
    let rendered = gateway.site.relative(&error.diagnostics.render(false));
    assert!(rendered.contains("unexpected `!`\n --> policies/25-p25.script:2:3\n"), "{rendered}");
    assert_eq!(gateway.body(), "hello");
    let drift = gateway.control.status().await.drift;
    assert!(drift.contains(&gateway.site.path("policies/25-p25.script")));

    gateway.site.write("policies/25-p25.script", "mended");
    let status = gateway.until(|status| status.last_error.is_none() && status.drift.is_empty()).await;
    assert_eq!((gateway.body().as_str(), status.generation), ("new", 2));
    assert!(gateway.control.status().await.drift.is_empty());
}

const LISTED: &str =
    "plugins: [{ stamp: { list: list.txt } }, { script: { file: a.script } }]\nroutes: [{ respond: {} }]\n";

#[tokio::test]
async fn a_list_applies_over_the_script_that_runs_while_the_one_on_disk_is_broken() {
    let site = Site::new(LISTED);
    site.write("list.txt", "first");
    site.write("a.script", "hello");
    let mut gateway = Gateway::start(site).await;
    let version = |status: &Status, name: &str| {
        status.plugins.iter().find(|plugin| &*plugin.name == name).unwrap().version.clone()
    };
    let before = gateway.control.status().await;
    gateway.site.write("a.script", "!");
    let status = gateway.until(|status| status.last_error.is_some()).await;
    assert_eq!(status.generation, 1, "no data input changed");
    gateway.site.write("list.txt", "second");
    let status = gateway.until(|status| status.generation == 2).await;
    assert!(status.last_error.is_some() && status.reloads.applied == 1 && status.reloads.refused == 2);
    assert_ne!(version(&before, "stamp"), version(&status, "stamp"));
    assert_eq!(version(&before, "script"), version(&status, "script"));
    assert_eq!(gateway.body(), "hello");
    assert_eq!(gateway.control.status().await.drift, [gateway.site.path("a.script")]);
    // The same inputs are not worth another attempt, nor another generation.
    let asked = gateway.control.reload(Trigger::Watch).await;
    assert!(matches!(asked, ReloadOutcome::Refused(_)));
    let status = gateway.control.status().await;
    assert_eq!((status.generation, status.reloads.refused), (2, 2));
}

#[tokio::test]
async fn a_list_that_is_gone_beside_a_broken_script_is_told_and_changes_nothing() {
    let site = Site::new(LISTED);
    site.write("list.txt", "first");
    site.write("a.script", "hello");
    let mut gateway = Gateway::start(site).await;
    gateway.site.write("portcullis.yaml", "listeners: [");
    gateway.until(|status| status.last_error.is_some()).await;
    gateway.site.remove("list.txt");
    let both = |status: &Arc<Status>| {
        let findings = status.last_error.as_ref().map(|error| error.diagnostics.render(false));
        findings.is_some_and(|text| {
            text.contains("list.txt` does not exist") && text.contains("portcullis.yaml:1:")
        })
    };
    assert_eq!(gateway.until(both).await.generation, 1);
    assert_eq!(gateway.body(), "hello");
}

#[tokio::test]
async fn a_start_falls_back_on_what_was_good_last() {
    let site = Site::new(LISTED);
    site.write("list.txt", "first");
    site.write("a.script", "hello");
    let start = async |site: &Site, fall_back| {
        let last_good = Some(LastGood::new(&site.path("state"), &site.config()));
        let options = Options { last_good, fall_back, ..options(site) };
        let metrics = Arc::new(Metrics::new(1));
        let plane = Arc::new(DataPlane::new(1, metrics.clone(), Vec::new()).unwrap());
        Control::start(options, Registry::new(&[KINDS]), plane, metrics).await
    };
    drop(start(&site, true).await.ok().unwrap());
    site.write("a.script", "!");
    site.configure(&format!("workers: 3\n{LISTED}"));
    assert!(start(&site, false).await.is_err());
    let control = start(&site, true).await.ok().unwrap();
    let status = control.status().await;
    assert!(status.last_good.is_some());
    assert_eq!(status.last_error.unwrap().trigger, Trigger::Start);
    assert_eq!(status.drift, [site.path("a.script"), site.config()]);
    // The process goes by the configuration on disk, so its settings are no change.
    site.write("a.script", "mended");
    assert!(matches!(
        control.reload(Trigger::Admin).await,
        ReloadOutcome::Applied { number: 2 } | ReloadOutcome::Unchanged
    ));
    let status = control.status().await;
    assert!(status.last_good.is_none() && status.last_error.is_none() && status.drift.is_empty());
    assert!(status.warnings.is_empty(), "{}", status.warnings.render(false));
    // What data has to be there is not kept.
    site.write("a.script", "!");
    site.remove("list.txt");
    let errors = start(&site, true).await.err().unwrap().render(false);
    assert!(
        errors.contains("cannot be served either") && errors.contains("list.txt` does not exist"),
        "{errors}"
    );
    assert_eq!(errors.matches("list.txt` does not exist").count(), 1, "{errors}");
}

#[tokio::test]
async fn policies_come_and_go_with_their_files() {
    let mut gateway = Gateway::start(Site::new(POLICIES)).await;
    gateway.site.write("policies/20-a.script", "a");
    gateway.until(|status| status.plugins.len() == 1).await;
    gateway.site.write("policies/10-b.script", "b");
    gateway.until(|status| status.plugins.len() == 2).await;
    assert_eq!((gateway.names(), gateway.body().as_str()), (vec!["b".into(), "a".into()], "b"));
    fs::rename(gateway.site.path("policies/10-b.script"), gateway.site.path("policies/30-c.script")).unwrap();
    gateway.until(|status| status.plugins.iter().any(|plugin| &*plugin.name == "c")).await;
    assert_eq!((gateway.names(), gateway.body().as_str()), (vec!["a".into(), "c".into()], "a"));
    gateway.site.remove("policies/20-a.script");
    gateway.until(|status| status.plugins.len() == 1).await;
    gateway.site.remove("policies/30-c.script");
    gateway.until(|status| status.plugins.is_empty()).await;
}

#[tokio::test]
async fn policies_stay_in_force_while_their_directory_is_away() {
    let site = Site::new(POLICIES);
    site.write("policies/10-a.script", "a");
    let mut gateway = Gateway::start(site).await;
    let (policies, away) = (gateway.site.path("policies"), gateway.site.path("away"));
    fs::rename(&policies, &away).unwrap();
    gateway.until(|status| status.last_error.is_some()).await;
    assert_eq!(gateway.body(), "a");
    fs::write(away.join("10-a.script"), "again").unwrap();
    fs::rename(&away, &policies).unwrap();
    gateway.until(|status| status.generation == 2 && status.last_error.is_none()).await;
    assert_eq!(gateway.body(), "again");
}

#[tokio::test]
async fn a_swapped_link_is_noticed_every_time() {
    // The layout of a Kubernetes ConfigMap.
    let site = Site::new("plugins: [{ script: { file: mounted/a.script } }]\nroutes: [{ respond: {} }]\n");
    for version in ["..1", "..2", "..3"] {
        site.write(&format!("mounted/{version}/a.script"), version);
    }
    symlink("..1", site.path("mounted/..data")).unwrap();
    symlink("..data/a.script", site.path("mounted/a.script")).unwrap();
    let mut gateway = Gateway::start(site).await;
    assert_eq!(gateway.body(), "..1");
    for (generation, version) in [(2, "..2"), (3, "..3")] {
        symlink(version, gateway.site.path("mounted/..data_tmp")).unwrap();
        fs::rename(gateway.site.path("mounted/..data_tmp"), gateway.site.path("mounted/..data")).unwrap();
        gateway.until(|status| status.generation == generation).await;
        assert_eq!(gateway.body(), version);
    }
}

#[tokio::test]
async fn asking_without_a_change_builds_nothing() {
    let site = Site::new(POLICIES);
    site.write("policies/10-a.script", "a");
    let gateway = Gateway::start(site).await;
    gateway.site.write("policies/10-a.script", "a");
    assert!(matches!(gateway.control.reload(Trigger::Signal).await, ReloadOutcome::Unchanged));
    let status = gateway.control.status().await;
    assert_eq!((status.generation, status.reloads.applied), (1, 0));
    assert!(status.reloads.unchanged >= 1);
}

#[tokio::test]
async fn a_mistake_that_is_undone_is_forgotten() {
    let gateway = Gateway::start(Site::new(POLICIES)).await;
    gateway.site.configure("plugins: [stmap]\nroutes: [{ respond: {} }]\n");
    let outcome = gateway.control.reload(Trigger::Admin).await;
    let ReloadOutcome::Refused(findings) = outcome else { panic!("{outcome:?}") };
    assert!(findings.render(false).contains("there is no plugin `stmap`"));
    gateway.site.configure(POLICIES);
    assert!(matches!(gateway.control.reload(Trigger::Admin).await, ReloadOutcome::Unchanged));
    let status = gateway.control.status().await;
    assert!(status.last_error.is_none() && status.generation == 1);
}

#[tokio::test]
async fn an_address_that_is_taken_refuses_the_reload() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let site = Site::new(POLICIES);
    site.write("policies/10-a.script", "a");
    let gateway = Gateway::start(site).await;
    let config = |binds: &str| format!("admin: off\nlisteners: [{{ name: web, bind: {binds} }}]\n{POLICIES}");
    gateway.site.write("portcullis.yaml", &config(&format!("[127.0.0.1:0, '{address}']")));
    let outcome = gateway.control.reload(Trigger::Signal).await;
    let ReloadOutcome::Refused(findings) = outcome else { panic!("{outcome:?}") };
    let rendered = gateway.site.relative(&findings.render(false));
    assert!(rendered.contains(&format!("listeners[0].bind[1]: cannot listen at {address}")), "{rendered}");
    assert_eq!(gateway.body(), "a");
    drop(taken);
    assert!(matches!(gateway.control.reload(Trigger::Signal).await, ReloadOutcome::Applied { number: 2 }));
    assert_eq!(gateway.control.status().await.listeners[0].addresses.len(), 2);
}

#[tokio::test]
async fn settings_that_are_fixed_say_so() {
    let mut gateway = Gateway::start(Site::new(POLICIES)).await;
    gateway.site.configure(&format!("workers: 7\n{POLICIES}"));
    let status = gateway.until(|status| status.generation == 2).await;
    let warnings = status.warnings.render(false);
    assert!(warnings.contains("`workers` is fixed while the gateway runs"), "{warnings}");
}

#[tokio::test]
async fn a_start_with_errors_tells_all_of_them() {
    let site = Site::new("plugins: [one, two]\nroutes: [{ respond: {} }]\n");
    let metrics = Arc::new(Metrics::new(1));
    let plane = Arc::new(DataPlane::new(1, metrics.clone(), Vec::new()).unwrap());
    let errors = Control::start(options(&site), Registry::new(&[KINDS]), plane, metrics).await.err().unwrap();
    assert_eq!(errors.0.len(), 2);
}

#[test]
fn a_check_finds_the_same_and_leaves_nothing_behind() {
    let site = Site::new(POLICIES);
    site.write("policies/10-a.script", "a");
    let registry = Registry::new(&[KINDS]);
    let summary = check(&site.config(), &registry, BTreeMap::new()).unwrap();
    assert_eq!((summary.listeners, summary.routes, summary.plugins, summary.files), (1, 1, 1, 2));
    site.write("policies/10-a.script", "!");
    let errors = check(&site.config(), &registry, BTreeMap::new()).unwrap_err();
    assert!(errors.render(false).contains("10-a.script:1:1"));
    assert!(check(&site.path("none.yaml"), &registry, BTreeMap::new()).is_err());
}

#[test]
fn a_check_refuses_logs_that_could_not_be_written_and_creates_none() {
    let checked = |log: &str| {
        let site =
            Site::new(&format!("plugins: [{{ stamp: {{ log: {log} }} }}]\nroutes: [{{ respond: {{}} }}]\n"));
        site.write("file", "");
        let checked = check(&site.config(), &Registry::new(&[KINDS]), BTreeMap::new());
        assert!(!site.path("a.log").exists());
        checked.map(|_| ()).map_err(|errors| site.relative(&errors.render(false)))
    };
    for fine in ["a.log", "file", "stdout"] {
        assert_eq!(checked(fine), Ok(()), "{fine}");
    }
    for (log, why) in
        [("nowhere/a.log", "No such file"), ("file/a.log", "Not a directory"), ("policies", "Is a dir")]
    {
        let error = checked(log).unwrap_err();
        let expected = format!("plugins[0].stamp.log: `{log}` can't be opened for logs: {why}");
        assert!(error.contains(&expected), "{error}");
    }
}
