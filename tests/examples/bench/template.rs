//! The contestants' configurations are templates, one file for all workloads, so that a reader sees side
//! by side what each of them is told.
//!
//! `{{word}}` stands for a value. A line that begins with `%tag+!other|` is there only if the first tag is
//! set and the second is not; a number among the tags repeats the line, with `{{n}}` from 0, and `{{cidr}}`
//! the n-th of as many disjoint ranges of addresses.

use std::fmt::Write;

/// What a template is filled with.
pub(crate) struct Values<'a> {
    /// The tags that are set.
    pub(crate) tags: Vec<&'a str>,
    /// Words with what they stand for.
    pub(crate) words: Vec<(&'a str, String)>,
}

/// Fills a template.
pub(crate) fn render(template: &str, values: &Values<'_>) -> String {
    let mut text = String::new();
    for line in template.lines() {
        let (conditions, line) = match line.strip_prefix('%').and_then(|line| line.split_once('|')) {
            Some((conditions, line)) => (conditions, line),
            None => ("", line),
        };
        let conditions = || conditions.split('+').filter(|condition| !condition.is_empty());
        if !conditions().all(|condition| holds(condition, &values.tags)) {
            continue;
        }
        let line = values.words.iter().fold(line.to_owned(), |line, (word, value)| fill(line, word, value));
        match conditions().find_map(|condition| condition.parse::<u32>().ok()) {
            None => text.push_str(&line),
            Some(times) => repeat(&mut text, &line, times),
        }
        text.push('\n');
    }
    text
}

fn holds(condition: &str, tags: &[&str]) -> bool {
    match condition.strip_prefix('!') {
        Some(absent) => !tags.contains(&absent),
        None => tags.contains(&condition) || condition.parse::<u32>().is_ok(),
    }
}

fn repeat(text: &mut String, line: &str, times: u32) {
    for n in 0..times {
        let separator = if n == 0 { "" } else { "\n" };
        let line = fill(fill(line.to_owned(), "n", &n.to_string()), "cidr", &cidr(n));
        let _ = write!(text, "{separator}{line}");
    }
}

fn fill(line: String, word: &str, value: &str) -> String {
    // Most lines of a long list have no such word.
    if line.contains("{{") { line.replace(&format!("{{{{{word}}}}}"), value) } else { line }
}

/// Ranges of three lengths that neither overlap nor touch, from 11.0.0.0 upwards.
fn cidr(n: u32) -> String {
    let base = std::net::Ipv4Addr::from(0x0b00_0000 + n * 0x200);
    let length = [24, 28, 32][n as usize % 3];
    format!("{base}/{length}")
}
