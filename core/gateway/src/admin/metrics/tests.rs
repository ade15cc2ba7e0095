use super::*;
use portcullis_control::Endpoints;
use portcullis_proxy::upstream::Upstream;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// A sample line, taken apart.
struct Sample {
    name: String,
    labels: Vec<(String, String)>,
    value: f64,
}

/// Reads the format as its description has it; panics where it is broken.
fn parsed(page: &str) -> (BTreeMap<String, String>, Vec<Sample>) {
    let mut types = BTreeMap::new();
    let mut helped = BTreeSet::new();
    let mut samples = Vec::new();
    for line in page.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            assert!(helped.insert(help.split(' ').next().unwrap().to_owned()), "twice: {line}");
        } else if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').unwrap();
            assert!(helped.contains(name), "type before help: {line}");
            assert!(types.insert(name.to_owned(), kind.to_owned()).is_none(), "twice: {line}");
        } else {
            samples.push(sample(line));
        }
    }
    (types, samples)
}

fn sample(line: &str) -> Sample {
    let (series, value) = line.rsplit_once(' ').unwrap();
    let (name, labels) = match series.split_once('{') {
        Some((name, labels)) => (name, labels.strip_suffix('}').unwrap()),
        None => (series, ""),
    };
    let mut rest = labels;
    let mut labels = Vec::new();
    while let Some((label, after)) = rest.split_once("=\"") {
        let mut value = String::new();
        let mut chars = after.char_indices();
        let end = loop {
            match chars.next().unwrap() {
                (at, '"') => break at,
                (_, '\\') => value.push(match chars.next().unwrap().1 {
                    'n' => '\n',
                    other => other,
                }),
                (_, other) => value.push(other),
            }
        };
        labels.push((label.trim_start_matches(',').to_owned(), value));
        rest = &after[end + 1..];
    }
    assert!(rest.is_empty(), "trailing text: {line}");
    assert!(
        ["portcullis_", "process_"].iter().any(|begin| name.starts_with(begin))
            && name.chars().all(|c| c.is_ascii_lowercase() || c == '_'),
        "{line}"
    );
    Sample { name: name.to_owned(), labels, value: value.parse().unwrap() }
}

fn busy() -> Metrics {
    let metrics = Metrics::new(2);
    metrics.connections.add(3);
    let route = metrics.route("odd \"name\" \\ with\nlines");
    route.responses[2].increment();
    route.duration.observe(Duration::from_millis(3));
    route.duration.observe(Duration::from_secs(100));
    let plugin = metrics.plugin("users/jwt", "jwt");
    plugin.hooks[1].observe(Duration::from_micros(7));
    plugin.errors[2].increment();
    metrics.upstream("api").connects.add(2);
    for (name, kind) in [("users/check", "check"), ("check", "check"), ("users/jwt", "jwt")] {
        let own = metrics.plugin(name, kind).own.clone();
        own.family("judged", "cases judged", ["why"]).with(["odd \"reason\""]).add(2);
    }
    metrics
}

fn facts() -> Facts {
    let metrics = Metrics::new(1);
    Facts {
        started: Duration::from_millis(1_700_000_000_500),
        usage: Usage { cpu_seconds: 2.5, open_files: Some(12), ..Usage::default() },
        draining: false,
        logs_dropped: vec![("execution".into(), 0), ("/var/log/a.log".into(), 4)],
        control: Some(ControlFacts {
            generation: 3,
            reloads: vec![("applied", 2), ("refused", 1)],
            refused: true,
            plugins: Vec::new(),
            upstreams: vec![UpstreamStatus {
                name: "api".into(),
                circuit: None,
                limit: None,
                protocol: "http2",
                endpoints: Endpoints(Arc::new(Upstream::new(
                    "api",
                    vec![Endpoint::new("10.0.0.1:80", &metrics).unwrap().into()],
                    metrics.upstream("api"),
                ))),
                dns: None,
            }],
        }),
    }
}

fn value(samples: &[Sample], name: &str, labels: &[(&str, &str)]) -> f64 {
    let has = |sample: &Sample| {
        labels.iter().all(|(name, value)| sample.labels.iter().any(|(n, v)| n == name && v == value))
    };
    let found = samples.iter().find(|sample| sample.name == name && has(sample));
    found.unwrap_or_else(|| panic!("no {name} {labels:?}")).value
}

#[test]
fn every_sample_belongs_to_a_family_and_no_series_comes_twice() {
    let (types, samples) = parsed(&render(&busy(), &facts()));
    let mut seen = BTreeSet::new();
    for sample in &samples {
        let family = types.get(&sample.name).map(|kind| (sample.name.as_str(), kind)).or_else(|| {
            let base = ["_bucket", "_sum", "_count"].iter().find_map(|end| sample.name.strip_suffix(end))?;
            types.get(base).map(|kind| (base, kind)).filter(|(_, kind)| *kind == "histogram")
        });
        let (name, kind) = family.unwrap_or_else(|| panic!("{} has no type", sample.name));
        assert_eq!(kind == "counter", name.ends_with("_total"), "{name} is a {kind}");
        assert!(seen.insert((sample.name.clone(), sample.labels.clone())), "{} twice", sample.name);
    }
}

#[test]
fn the_process_has_the_names_of_client_libraries_and_what_is_not_known_is_not_there() {
    let (types, samples) = parsed(&render(&busy(), &facts()));
    assert_eq!(value(&samples, "process_cpu_seconds_total", &[]), 2.5);
    assert_eq!(value(&samples, "process_start_time_seconds", &[]), 1_700_000_000.5);
    assert_eq!(value(&samples, "process_open_fds", &[]), 12.0);
    assert!(!types.contains_key("process_max_fds"));
}

#[test]
fn counters_of_plugins_stand_under_their_kind_with_the_instance_as_label() {
    let metrics = busy();
    let own = metrics.plugin("users/check", "check").own.clone();
    let family = own.clone().family("judged", "cases judged", ["why"]);
    for case in 0..2 * portcullis_plugin::MAX_SERIES {
        family.with([&case.to_string()]).increment();
    }
    let gauge = own.gauge("open", "what is open", 7);
    gauge.add(3);
    let (types, samples) = parsed(&render(&metrics, &facts()));
    let open = [("plugin", "users/check"), ("generation", "7")];
    assert_eq!(value(&samples, "portcullis_plugin_check_open", &open), 3.0);
    let of = |plugin, why| {
        value(&samples, "portcullis_plugin_check_judged_total", &[("plugin", plugin), ("why", why)])
    };
    assert_eq!((of("check", "odd \"reason\""), of("users/check", "7")), (2.0, 1.0));
    assert!(types.contains_key("portcullis_plugin_jwt_judged_total"));
    let overflow = portcullis_plugin::MAX_SERIES as f64 + 1.0;
    assert_eq!(of("users/check", "other"), overflow);
    let counted = value(&samples, "portcullis_plugin_series_overflow_total", &[("plugin", "users/check")]);
    assert_eq!(counted, overflow);
}

#[test]
fn buckets_rise_and_end_at_the_count() {
    let (_, samples) = parsed(&render(&busy(), &facts()));
    let buckets: Vec<_> =
        samples.iter().filter(|sample| sample.name == "portcullis_request_duration_seconds_bucket").collect();
    assert_eq!(buckets.len(), BUCKETS.len() + 1);
    assert!(buckets.is_sorted_by(|one, next| one.value <= next.value));
    assert_eq!(buckets.last().unwrap().labels.last().unwrap().1, "+Inf");
    assert_eq!(buckets.last().unwrap().value, 2.0);
    assert_eq!(value(&samples, "portcullis_request_duration_seconds_count", &[]), 2.0);
    assert!((value(&samples, "portcullis_request_duration_seconds_sum", &[]) - 100.003).abs() < 1e-9);
    let below = value(&samples, "portcullis_request_duration_seconds_bucket", &[("le", "0.0025")]);
    assert_eq!(
        (below, value(&samples, "portcullis_request_duration_seconds_bucket", &[("le", "0.005")])),
        (0.0, 1.0)
    );
}

#[test]
fn the_buckets_that_client_libraries_have_are_there() {
    let usual = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
    assert!(usual.iter().all(|bound| BUCKETS.contains(bound)) && BUCKETS.is_sorted());
}

#[test]
fn a_route_without_traffic_has_no_series() {
    let metrics = busy();
    for route in 0..1000 {
        metrics.route(&format!("idle-{route}"));
    }
    let page = render(&metrics, &facts());
    assert_eq!(page, render(&busy(), &facts()));
    let (types, _) = parsed(&render(&Metrics::new(1), &facts()));
    assert!(types.contains_key("portcullis_responses_total"));
    assert!(types.contains_key("portcullis_request_duration_seconds"));
}

#[test]
fn labels_are_escaped() {
    let (_, samples) = parsed(&render(&busy(), &facts()));
    let labels = [("route", "odd \"name\" \\ with\nlines"), ("class", "2xx")];
    assert_eq!(value(&samples, "portcullis_responses_total", &labels), 1.0);
}

#[test]
fn plugins_hooks_and_overrun_budgets_are_told_apart() {
    let (_, samples) = parsed(&render(&busy(), &facts()));
    let hook = [("plugin", "users/jwt"), ("kind", "jwt"), ("hook", "on_request")];
    assert_eq!(value(&samples, "portcullis_plugin_hook_duration_seconds_count", &hook), 1.0);
    assert!(!samples.iter().any(|sample| sample.labels.contains(&("hook".into(), "on_log".into()))));
    let errors = |error| {
        value(&samples, "portcullis_plugin_errors_total", &[("plugin", "users/jwt"), ("error", error)])
    };
    assert_eq!((errors("budget"), errors("trap")), (1.0, 0.0));
}

#[test]
fn before_the_first_generation_there_is_a_page_too() {
    let (types, samples) = parsed(&render(&Metrics::new(1), &Facts::default()));
    assert!(!types.contains_key("portcullis_generation"));
    assert_eq!(value(&samples, "portcullis_connections_total", &[]), 0.0);
}

#[test]
fn reloads_and_dropped_lines_are_shown() {
    let (_, samples) = parsed(&render(&busy(), &facts()));
    assert_eq!(value(&samples, "portcullis_generation", &[]), 3.0);
    assert_eq!(value(&samples, "portcullis_reloads_total", &[("outcome", "refused")]), 1.0);
    assert_eq!(value(&samples, "portcullis_reload_refused", &[]), 1.0);
    assert_eq!(value(&samples, "portcullis_log_dropped_total", &[("log", "/var/log/a.log")]), 4.0);
    let endpoint = [("upstream", "api"), ("endpoint", "10.0.0.1:80")];
    assert_eq!(value(&samples, "portcullis_endpoint_healthy", &endpoint), 1.0);
}
