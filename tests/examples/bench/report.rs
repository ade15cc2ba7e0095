//! What was measured, as tables for people and as JSON for programs.

use std::fmt::Write;
use std::fs;

use portcullis_tests::here;
use serde_json::{Map, Value, json};

use crate::Result;
use crate::workloads::Workload;

/// Something that is measured.
pub(crate) struct Metric {
    key: &'static str,
    title: &'static str,
    digits: usize,
    /// Whether more is better.
    more: bool,
}

pub(crate) const THROUGHPUT: Metric = metric("requests_per_second", "req/s", 0, true);
pub(crate) const P50: Metric = metric("p50_us", "p50 µs", 0, false);
pub(crate) const P99: Metric = metric("p99_us", "p99 µs", 0, false);
pub(crate) const CPU: Metric = metric("cpu_us_per_request", "CPU µs/req", 1, false);
pub(crate) const MEMORY: Metric = metric("memory_mib", "MiB", 1, false);
pub(crate) const RELOADS: Metric = metric("reloads_per_second", "reloads/s", 1, true);
pub(crate) const BROKEN: Metric = metric("broken_requests", "broken off", 0, false);
pub(crate) const CONNECTIONS: Metric = metric("connections", "connections", 0, true);
pub(crate) const PER_CONNECTION: Metric = metric("memory_kib_per_connection", "KiB/connection", 1, false);
pub(crate) const USER_INSTRUCTIONS: Metric = metric("user_instructions", "user instructions/req", 0, false);
pub(crate) const KERNEL_INSTRUCTIONS: Metric =
    metric("kernel_instructions", "kernel instructions/req", 0, false);
pub(crate) const INSTRUCTIONS: Metric = metric("instructions", "instructions/req", 0, false);

/// How a metric stands in the table. What it is to nginx and to the better peer is in the JSON of each.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Column {
    /// By itself.
    Plain,
    /// With what it is to nginx behind it.
    Ratio,
    /// With columns for both ratios, if it is the first of the workload's that may be: what contestants are compared by.
    Lead,
}

/// In this order.
const COLUMNS: [(&Metric, Column); 12] = [
    (&THROUGHPUT, Column::Ratio),
    (&P50, Column::Ratio),
    (&P99, Column::Ratio),
    (&RELOADS, Column::Plain),
    (&BROKEN, Column::Plain),
    (&CONNECTIONS, Column::Plain),
    (&CPU, Column::Lead),
    (&KERNEL_INSTRUCTIONS, Column::Ratio),
    (&INSTRUCTIONS, Column::Lead),
    (&USER_INSTRUCTIONS, Column::Lead),
    (&PER_CONNECTION, Column::Lead),
    (&MEMORY, Column::Ratio),
];

/// What everybody is compared to, alone and as the better of the two.
const PEERS: [&str; 2] = ["nginx", "haproxy"];

/// Where the tables go in the README.
const MARKS: [&str; 2] = ["<!-- results -->\n", "<!-- end of results -->\n"];

const fn metric(key: &'static str, title: &'static str, digits: usize, more: bool) -> Metric {
    Metric { key, title, digits, more }
}

/// What one measurement found.
pub(crate) type Sample = Vec<(&'static Metric, f64)>;

/// A workload's samples by contestant, in order.
pub(crate) struct Results {
    pub(crate) workload: &'static Workload,
    pub(crate) rows: Vec<(&'static str, Vec<Sample>)>,
}

/// The middle of several values, and how far they lie apart.
struct Summary {
    median: f64,
    least: f64,
    most: f64,
    values: Vec<f64>,
}

impl Results {
    fn summary(&self, contestant: &str, metric: &Metric) -> Option<Summary> {
        let (_, samples) = self.rows.iter().find(|(name, _)| *name == contestant)?;
        let of = |sample: &Sample| {
            sample.iter().find(|(known, _)| known.key == metric.key).map(|(_, value)| *value)
        };
        let values: Vec<f64> = samples.iter().filter_map(of).collect();
        let mut sorted = values.clone();
        sorted.sort_by(f64::total_cmp);
        let (least, most) = (*sorted.first()?, *sorted.last()?);
        let middle = |at: usize| sorted.get(at).copied().unwrap_or(least);
        let median = (middle((sorted.len() - 1) / 2) + middle(sorted.len() / 2)) / 2.0;
        Some(Summary { median, least, most, values })
    }

    /// A contestant's median as a multiple of nginx's, and of the better peer's.
    fn ratios(&self, contestant: &str, metric: &Metric) -> [Option<f64>; 2] {
        let median = |name: &str| self.summary(name, metric).map(|summary| summary.median);
        let own = median(contestant);
        let better = |one: f64, other: f64| if metric.more { one.max(other) } else { one.min(other) };
        let best = PEERS.iter().filter_map(|peer| median(peer)).reduce(better);
        [median(PEERS[0]), best].map(|peer| Some(own? / peer.filter(|peer| *peer > 0.0)?))
    }

    fn columns(&self) -> Vec<(&'static Metric, Column)> {
        // Nobody needs to read that nothing broke.
        let says = |metric: &Metric, found: &Summary| metric.key != BROKEN.key || found.most > 0.0;
        let present = |metric: &Metric| {
            let found = self.rows.iter().filter_map(|(name, _)| self.summary(name, metric));
            found.into_iter().any(|found| says(metric, &found))
        };
        let mut columns: Vec<_> = COLUMNS.into_iter().filter(|(metric, _)| present(metric)).collect();
        let others = columns.iter_mut().filter(|(_, column)| *column == Column::Lead).skip(1);
        others.for_each(|(_, column)| *column = Column::Ratio);
        columns
    }

    /// A table in Markdown.
    pub(crate) fn table(&self) -> String {
        let columns = self.columns();
        let mut head = vec!["contestant".to_owned()];
        for (metric, column) in &columns {
            head.push(metric.title.to_owned());
            if *column == Column::Lead {
                head.extend(["× nginx", "× best peer"].map(str::to_owned));
            }
        }
        let line = |(name, _): &(&'static str, _)| {
            let cells = columns.iter().flat_map(|(metric, column)| self.cells(name, metric, *column));
            [(*name).to_owned()].into_iter().chain(cells).collect()
        };
        let lines: Vec<Vec<String>> = self.rows.iter().map(line).collect();
        format!("**{}**: {}\n\n{}", self.workload.name, self.workload.about, aligned(&head, &lines))
    }

    /// What the table says of a contestant in a column, or in the three of the lead.
    fn cells(&self, contestant: &str, metric: &Metric, column: Column) -> Vec<String> {
        let found = self.summary(contestant, metric).map_or("-".into(), |found| found.show(metric));
        let ratios = self.ratios(contestant, metric).map(|ratio| ratio.map(|ratio| format!("{ratio:.2}")));
        match (column, ratios) {
            (Column::Lead, ratios) => {
                let ratios = ratios.map(|ratio| ratio.unwrap_or_else(|| "-".into()));
                [found].into_iter().chain(ratios).collect()
            }
            (Column::Ratio, [Some(to_nginx), _]) => vec![format!("{found} ({to_nginx})")],
            _ => vec![found],
        }
    }

    fn json(&self) -> Value {
        let lead = self.columns().into_iter().find(|(_, column)| *column == Column::Lead);
        let metrics = |name: &str| -> Map<String, Value> {
            let columns = self.columns().into_iter();
            let found = columns.filter_map(|(metric, _)| Some((metric, self.summary(name, metric)?)));
            let entry = |(metric, found): (&Metric, Summary)| {
                let [to_nginx, to_best_peer] = self.ratios(name, metric);
                let value = json!({
                    "median": found.median,
                    "least": found.least,
                    "most": found.most,
                    "rounds": found.values,
                    "to_nginx": to_nginx,
                    "to_best_peer": to_best_peer,
                });
                (metric.key.to_owned(), value)
            };
            found.map(entry).collect()
        };
        let contestants: Map<String, Value> =
            self.rows.iter().map(|(name, _)| ((*name).to_owned(), metrics(name).into())).collect();
        json!({
            "name": self.workload.name,
            "about": self.workload.about,
            "compared_by": lead.map(|(metric, _)| metric.key),
            "contestants": contestants,
        })
    }
}

impl Summary {
    /// The median, with half of the range in per cent of it.
    fn show(&self, metric: &Metric) -> String {
        let median = format!("{:.*}", metric.digits, self.median);
        if self.values.len() < 2 || self.median == 0.0 {
            return median;
        }
        format!("{median} ±{:.0}%", (self.most - self.least) / 2.0 / self.median * 100.0)
    }
}

/// A table in Markdown whose columns line up as plain text too.
fn aligned(head: &[String], lines: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = lines.iter().filter_map(|line| line.get(column)).chain(head.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let mut text = String::new();
    let mut row = |cells: &[String]| {
        for (at, (cell, width)) in cells.iter().zip(&widths).enumerate() {
            // Names to the left, numbers to the right.
            let _ =
                if at == 0 { write!(text, "| {cell:<width$} |") } else { write!(text, " {cell:>width$} |") };
        }
        text.push('\n');
    };
    row(head);
    let rules: Vec<String> = widths.iter().map(|width| "-".repeat(*width)).collect();
    let rules: Vec<String> = rules
        .iter()
        .enumerate()
        .map(|(at, rule)| if at == 0 { rule.clone() } else { format!("{}:", &rule[1..]) })
        .collect();
    row(&rules);
    lines.iter().for_each(|line| row(line));
    text
}

/// Everything, for programs.
pub(crate) fn json(machine: Value, setting: Value, results: &[Results], left_out: &[String]) -> Value {
    json!({
        "machine": machine,
        "setting": setting,
        "workloads": results.iter().map(Results::json).collect::<Vec<_>>(),
        "left_out": left_out,
    })
}

/// Puts the tables between the marks of `tests/bench/README.md`.
pub(crate) fn write_readme(machine: &Value, setting: &str, results: &[Results]) -> Result<()> {
    let path = here().join("bench/README.md");
    let readme = fs::read_to_string(&path)?;
    let [begin, end] = MARKS;
    let (before, rest) = readme.split_once(begin).ok_or("the README has no place for results")?;
    let (_, after) = rest.split_once(end).ok_or("the README's place for results has no end")?;
    let mut text = format!("{before}{begin}\n{setting}\n\n");
    for (key, value) in machine.as_object().into_iter().flatten() {
        let _ = writeln!(text, "* {key}: {}", value.as_str().map_or(value.to_string(), str::to_owned));
    }
    for result in results {
        let _ = write!(text, "\n{}", result.table());
    }
    let _ = write!(text, "\n{end}{after}");
    fs::write(path, text)?;
    Ok(())
}
