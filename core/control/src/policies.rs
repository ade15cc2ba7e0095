//! The policy directory: files that apply by being there.
//!
//! `NN-name.rhai` or `NN-name.wasm` is an instance of the kind that its ending names, called
//! `name`; the files' names are their order. `NN-name.yaml` beside it holds instance options and
//! what else may stand in the kind's table. Companions of policies are left alone: definitions for
//! editors (`x.d.rhai`), tests (`x.test.yaml`, `x.test.rhai`), and signatures (`x.wasm.minisig`).

use std::path::{Path, PathBuf};
use std::sync::Arc;

use portcullis_config::{
    Diagnostic, Diagnostics, INSTANCE_OPTIONS, InstanceOptions, Loaded, Node, Policies, Source, Value,
    parse_table,
};
use portcullis_plugin::{Ceiling, HttpGrant, SecretRef, Size, Span};

use crate::build::{Planned, Scope, Whereabouts};
use crate::host::{Services, world_writable};
use crate::inputs::Files;
use crate::trust::{SIGNATURE, replaceable};

/// Reads the policies in `policies.dir`, which is relative to `root`.
pub(crate) fn read(
    loaded: &Loaded,
    root: &Path,
    policies: &Policies,
    services: &Services,
    files: &mut Files,
    findings: &mut Diagnostics,
) -> Vec<Planned> {
    let dir = crate::inputs::absolute(root, &policies.dir);
    let listing = match files.list(&dir) {
        Ok(listing) => listing,
        // Whoever names a directory counts on its policies: without it nothing would be refused any more.
        Err(message) => {
            let help = format!("create `{}`, or remove `policies`", dir.display());
            findings.push(loaded.error("policies.dir", message).with_help(help));
            return Vec::new();
        }
    };
    if listing.world_writable {
        let message = format!("everybody can put policies into `{}`", dir.display());
        let help = format!("`chmod o-w {}`", dir.display());
        findings.push(loaded.error("policies.dir", message).with_help(help));
        return Vec::new();
    }
    let ceiling = Some(Arc::new(ceiling(loaded, &policies.grants, findings)));
    let names = listing.names.into_iter().filter(|name| !is_companion(name)).collect();
    let mut directory = Directory { dir, names, ceiling, services, files, findings, given: None };
    directory.remark_on_the_rest();
    directory.planned()
}

/// The ceiling as plugins know it.
fn ceiling(loaded: &Loaded, configured: &portcullis_config::Ceiling, findings: &mut Diagnostics) -> Ceiling {
    let portcullis_config::Ceiling { http, cache, store, rate_limit, metrics, clock, random, secrets } =
        configured;
    let mut named = Vec::new();
    for (at, secret) in secrets.iter().enumerate() {
        match SecretRef::try_from(secret.clone()) {
            Ok(secret) => named.push(secret),
            Err(message) => findings.push(loaded.error(&format!("policies.grants.secrets[{at}]"), message)),
        }
    }
    let http = http.as_ref().map(|http| HttpGrant {
        upstreams: http.upstreams.clone(),
        timeout: Span(http.timeout.0),
        calls: http.calls,
        max_body: Size(usize::try_from(http.max_body.0).unwrap_or(usize::MAX)),
        shadow: true,
    });
    Ceiling {
        http,
        cache: cache.entries,
        store: *store,
        rate_limit: *rate_limit,
        metrics: *metrics,
        clock: *clock,
        random: *random,
        secrets: named,
    }
}

/// A policy that is run alone, whatever it is a part of.
pub(crate) struct Alone {
    /// Its file, absolute.
    pub(crate) policy: PathBuf,
    /// What stands in place of the file of options beside it.
    pub(crate) options: Option<(Source, Node)>,
    /// The configuration around it.
    pub(crate) around: String,
}

/// Reads a policy that is run alone. What it decides holds, also where it is in shadow so far.
pub(crate) fn alone(
    alone: &Alone,
    services: &Services,
    files: &mut Files,
    findings: &mut Diagnostics,
) -> Option<Planned> {
    let (dir, file) = (alone.policy.parent()?, alone.policy.file_name()?.to_str()?);
    let (stem, ending) = split(file);
    if services.registry.runner(ending).is_none() {
        let help = format!("policies end in {}", services.registry.endings());
        findings.push(Diagnostic::error(&alone.policy, "this is no policy").with_help(help));
        return None;
    }
    let side = format!("{stem}.yaml");
    let has_side = files.read_policy(&dir.join(&side)).is_ok();
    let names = has_side.then_some(side).into_iter().collect();
    let given = alone.options.clone();
    let mut directory =
        Directory { dir: dir.to_owned(), names, ceiling: None, services, files, findings, given };
    let planned = directory.policy(file)?;
    let InstanceOptions { on_error, timeout, .. } = planned.options;
    Some(Planned { options: InstanceOptions { on_error, timeout, ..InstanceOptions::default() }, ..planned })
}

struct Directory<'d> {
    dir: PathBuf,
    names: Vec<String>,
    /// The most that it may grant; none for a policy alone, which is judged by it where it is in force.
    ceiling: Option<Arc<Ceiling>>,
    services: &'d Services,
    files: &'d mut Files,
    findings: &'d mut Diagnostics,
    /// Options in place of those in files.
    given: Option<(Source, Node)>,
}

impl Directory<'_> {
    fn planned(&mut self) -> Vec<Planned> {
        let names = self.names.clone();
        names.iter().filter_map(|name| self.policy(name)).collect()
    }

    fn policy(&mut self, file: &str) -> Option<Planned> {
        let (stem, ending) = split(file);
        let registration = self.services.registry.runner(ending)?;
        let path = self.dir.join(file);
        // Looked at here too, so that a kind that reads it in another way makes no difference.
        let read = self.files.read_policy(&path).and_then(|content| match content.world_writable {
            true => Err(world_writable(&path)),
            false => Ok(()),
        });
        if let Err(message) = read {
            self.findings.push(Diagnostic::error(&path, message));
            return None;
        }
        let (source, options, table) = self.options(stem, &path)?;
        Some(Planned {
            registration,
            name: name(stem).into(),
            scope: Scope::Gateway,
            options,
            table,
            ceiling: self.ceiling.clone(),
            place: Whereabouts { source, path: String::new(), policy: Some(path) },
        })
    }

    /// The policy's options, and its table with the `file` put in.
    fn options(&mut self, stem: &str, policy: &Path) -> Option<(Option<Source>, InstanceOptions, Node)> {
        let side = format!("{stem}.yaml");
        let result = match self.given.take() {
            Some((source, node)) => judged(source, node),
            None if self.names.contains(&side) => self.side_file(&self.dir.join(side)),
            None => Ok((None, empty_table(policy)?)),
        };
        let with_file = result.and_then(|(source, node)| {
            let (options, table) = self.separate(node, source.as_ref());
            Ok((source, options, with_file(table, policy)?))
        });
        with_file.map_err(|found| self.findings.0.extend(found.0)).ok()
    }

    fn side_file(&mut self, path: &Path) -> Result<(Option<Source>, Node), Diagnostics> {
        let refused = |message: String| Diagnostics::from(Diagnostic::error(path, message));
        let content = self.files.read_policy(path).map_err(refused)?;
        if content.world_writable {
            return Err(refused(world_writable(path)));
        }
        if let Some(reason) = replaceable(path) {
            return Err(refused(reason));
        }
        let file = content.at(path);
        let text = file.text().map_err(refused)?;
        let (source, node) = parse_table(path, text, &*self.services.env)?;
        judged(source, node)
    }

    /// An options file into what belongs to the instance and what to its kind.
    fn separate(&mut self, node: Node, source: Option<&Source>) -> (InstanceOptions, Node) {
        let Value::Table(entries) = node.value else { return (InstanceOptions::default(), node) };
        let (options, rest): (Vec<_>, Vec<_>) =
            entries.into_iter().partition(|(key, _)| INSTANCE_OPTIONS.contains(&key.text.as_str()));
        let options = Node { span: node.span, value: Value::Table(options) };
        // After errors the policy is planned all the same: its own table may have some too.
        let options = options.read("").unwrap_or_else(|errors| {
            let shown = errors.into_iter().zip(source.into_iter().cycle());
            self.findings.0.extend(shown.map(|(error, source)| error.diagnostic(source)));
            InstanceOptions::default()
        });
        (options, Node { span: node.span, value: Value::Table(rest) })
    }

    /// Warns about files that do nothing: hardly what somebody meant who put them here.
    fn remark_on_the_rest(&mut self) {
        for file in &self.names {
            let (stem, ending) = split(file);
            let path = self.dir.join(file);
            let registry = &self.services.registry;
            if registry.runner(ending).is_some() || file.ends_with('/') {
                continue;
            }
            let has_policy = || self.names.iter().any(|other| other != file && runs(registry, other, stem));
            let (message, help) = match ending {
                "yaml" if has_policy() => continue,
                "yaml" => (
                    "there is no policy to these options",
                    format!("put `{stem}` with ending {} beside it", registry.endings()),
                ),
                _ => ("this is no policy", format!("policies end in {}", registry.endings())),
            };
            self.findings.push(Diagnostic::error(&path, message).with_help(help).into_warning());
        }
    }
}

/// Options that say nothing of what the policy's file says by its name.
fn judged(source: Source, node: Node) -> Result<(Option<Source>, Node), Diagnostics> {
    if let Some((key, _)) = node.entry("file") {
        let error = source.error(key.span, "the file is the one of the same name");
        return Err(error.with_help("remove this line").into());
    }
    if let Some((key, _)) = node.entry("name") {
        let error = source.error(key.span, "the name is the file's, without number and ending");
        return Err(error.with_help("rename the file").into());
    }
    Ok((Some(source), node))
}

fn runs(registry: &crate::registry::Registry, file: &str, stem: &str) -> bool {
    let (other, ending) = split(file);
    other == stem && registry.runner(ending).is_some()
}

fn is_companion(file: &str) -> bool {
    let (stem, ending) = split(file);
    ending == SIGNATURE || matches!(split(stem).1, "d" | "test")
}

/// `10-geo` and `rhai` of `10-geo.rhai`.
fn split(file: &str) -> (&str, &str) {
    file.rsplit_once('.').unwrap_or((file, ""))
}

/// `geo` of `10-geo`; the whole stem if nothing else is left.
fn name(stem: &str) -> &str {
    let rest = stem.trim_start_matches(|c: char| c.is_ascii_digit());
    match rest.strip_prefix('-') {
        Some(name) if rest.len() < stem.len() && !name.is_empty() => name,
        _ => stem,
    }
}

fn with_file(mut table: Node, policy: &Path) -> Result<Node, Diagnostics> {
    // A JSON string is a YAML string; the one thing it does not escape is interpolation.
    let path = serde_json::Value::from(policy.to_string_lossy()).to_string().replace("${", "$${");
    let (_, file) = parse_table(policy, &format!("file: {path}"), &|_| None)?;
    if let (Value::Table(entries), Value::Table(file)) = (&mut table.value, file.value) {
        entries.splice(0..0, file);
    }
    Ok(table)
}

fn empty_table(policy: &Path) -> Option<Node> {
    parse_table(policy, "", &|_| None).map(|(_, node)| node).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn companions_of_policies_are_no_policies() {
        for (file, is) in [
            ("portcullis.d.rhai", true),
            ("10-a.test.yaml", true),
            ("10-a.wasm.minisig", true),
            ("10-a.rhai", false),
            ("d", false),
        ] {
            assert_eq!(is_companion(file), is, "{file}");
        }
    }

    #[test]
    fn a_policy_is_named_by_its_file_without_number_and_ending() {
        for (file, expected) in [
            ("10-geo.rhai", "geo"),
            ("geo.rhai", "geo"),
            ("10-20-geo.rhai", "20-geo"),
            ("10-.rhai", "10-"),
            ("10.rhai", "10"),
            ("v2-geo.rhai", "v2-geo"),
            ("-geo.rhai", "-geo"),
        ] {
            assert_eq!(name(split(file).0), expected, "{file}");
        }
    }

    #[test]
    fn any_path_survives_its_way_into_a_table() {
        for path in ["/p/10-a.rhai", "/p/${HOME}/x.rhai", "/p/a \"b\": {c}, 'd' # e.rhai", "/p/\u{e9}.rhai"] {
            let table = with_file(empty_table(Path::new("x")).unwrap(), Path::new(path)).unwrap();
            assert_eq!(table.to_json()["file"], path);
        }
    }
}
