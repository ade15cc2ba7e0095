//! Recorded requests through two generations: which of them end in another way.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{Request, Response, StatusCode};
use portcullis_config::{Diagnostic, Diagnostics};
use portcullis_plugin::Clock;
use portcullis_proxy::metrics::Metrics;
use portcullis_proxy::sample::Sample;
use serde::Serialize;

use crate::control::dry_services;
use crate::host::Services;
use crate::inputs::Files;
use crate::registry::Registry;
use crate::rehearsal::{Answer, Asked, Play, Rehearsal, Untold};
use crate::state::StateStore;
use crate::suite::nanos_of;

/// Requests that are tried at most, the latest: as many as a reload can wait for.
const MOST: usize = 1000;

/// A request that ends in another way.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Flip {
    /// Its id when it was recorded.
    pub id: String,
    /// When that was.
    pub time: String,
    /// Its method and path, without the query.
    pub request: String,
    /// What came of it before.
    pub before: Ending,
    /// What comes of it now.
    pub after: Ending,
}

/// What came of a request.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Ending {
    /// The status; none if the connection was closed.
    pub status: Option<u16>,
    /// Who answered in place of the upstream.
    pub by: Option<String>,
    /// The reason of a refusal.
    pub reason: Option<String>,
}

/// What came of a replay.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Replayed {
    /// How many requests were tried.
    pub requests: usize,
    /// How many of them had a body that was not recorded.
    pub without_body: usize,
    /// Those that end in another way.
    pub flips: Vec<Flip>,
}

/// The requests that are recorded in a file and the one before it, the latest of them. The error says why there are none.
pub fn samples(file: &Path) -> Result<Vec<Sample>, String> {
    let mut before = file.to_owned().into_os_string();
    before.push(".1");
    let latest = fs::read_to_string(file);
    let latest = latest.map_err(|error| format!("`{}` can't be read: {error}", file.display()))?;
    let earlier = fs::read_to_string(PathBuf::from(before)).unwrap_or_default();
    // The last line may not be whole yet.
    let lines = earlier.lines().chain(latest.lines());
    let mut samples: Vec<Sample> = lines.filter_map(|line| serde_json::from_str(line).ok()).collect();
    samples.drain(..samples.len().saturating_sub(MOST));
    Ok(samples)
}

/// Tries requests on two configurations, and tells which end in another way. The errors are those of the configurations.
pub async fn replay(
    before: &Path,
    after: &Path,
    registry: &Registry,
    samples: &[Sample],
) -> Result<Replayed, Diagnostics> {
    let services = || dry_services(registry, BTreeMap::new(), Arc::new(Metrics::new(1)));
    compare((before, services(), Files::default()), (after, services(), Files::default()), samples).await
}

/// The same with services and files of somebody else's making.
pub(crate) async fn compare(
    before: (&Path, Services, Files),
    after: (&Path, Services, Files),
    samples: &[Sample],
) -> Result<Replayed, Diagnostics> {
    let (mut before, mut after) = (Trial::of(before).await?, Trial::of(after).await?);
    let mut replayed = Replayed { requests: samples.len(), ..Replayed::default() };
    for sample in samples {
        replayed.without_body += usize::from(sample.body.is_none() && sample.body_bytes > 0);
        let (was, is) = (before.ends(sample).await, after.ends(sample).await);
        if was != is {
            let path = sample.target.split('?').next().unwrap_or_default();
            replayed.flips.push(Flip {
                id: sample.id.clone(),
                time: sample.time.clone(),
                request: format!("{} {path}", sample.method),
                before: was,
                after: is,
            });
        }
    }
    Ok(replayed)
}

/// A generation on which requests are tried.
struct Trial {
    rehearsal: Rehearsal,
    nanos: Arc<AtomicU64>,
}

impl Trial {
    async fn of((config, services, mut files): (&Path, Services, Files)) -> Result<Self, Diagnostics> {
        // It goes by what is recorded from the first request on.
        let nanos = Arc::new(AtomicU64::new(1));
        let clock = Clock::set_by(nanos.clone());
        let services = Services { state: StateStore::with(clock.clone()), clock, ..services };
        let rehearsal = Rehearsal::of(config, Play::default(), services, &mut files).await?;
        Ok(Trial { rehearsal, nanos })
    }

    async fn ends(&mut self, sample: &Sample) -> Ending {
        if let Ok(time) = humantime::parse_rfc3339(&sample.time) {
            // Requests are recorded as they end, which is not quite the order in which they began.
            self.nanos.fetch_max(nanos_of(time), Relaxed);
        }
        if let Some((upstream, status)) = &sample.upstream {
            let mut answer = Response::new(Bytes::new());
            *answer.status_mut() = StatusCode::from_u16(*status).unwrap_or_default();
            self.rehearsal.answer(upstream, Answer::Is(answer));
        }
        let Some(asked) = asked(sample, self.rehearsal.listener(&sample.listener)) else {
            return Ending { reason: Some("replay.unreadable".to_owned()), ..Ending::default() };
        };
        match self.rehearsal.ask(&asked).await {
            Err(Untold::Refused) => Ending::default(),
            Err(Untold::Failed(why)) => Ending { reason: Some(why), ..Ending::default() },
            Ok(told) => {
                let decision = told.record.decided_by;
                Ending {
                    status: told.answer.map(|answer| answer.status().as_u16()),
                    by: decision.as_ref().map(|decision| decision.by.clone()),
                    reason: decision.and_then(|decision| decision.reason),
                }
            }
        }
    }
}

fn asked(sample: &Sample, listener: Option<String>) -> Option<Asked> {
    let mut request = Request::builder().method(sample.method()?).uri(&sample.target);
    let framing = [CONTENT_LENGTH.as_str(), TRANSFER_ENCODING.as_str()];
    for (name, value) in sample.headers.iter().filter(|(name, _)| !framing.contains(&name.as_str())) {
        request = request.header(name, value);
    }
    let body = Bytes::from(sample.body.clone().unwrap_or_default());
    Some(Asked { listener, client: sample.client, request: request.body(body).ok()? })
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.status {
            Some(status) => write!(f, "{status}")?,
            None => f.write_str("no answer")?,
        }
        if let Some(by) = &self.by {
            write!(f, " by {by}")?;
        }
        match &self.reason {
            Some(reason) => write!(f, " ({reason})"),
            None => Ok(()),
        }
    }
}

impl Replayed {
    /// The first of its flips as a finding.
    pub(crate) fn finding(&self, most: u32, at: Diagnostic) -> Option<Diagnostic> {
        let first = self.flips.first().filter(|_| self.flips.len() > most as usize)?;
        let message = format!(
            "{} of {} recorded requests end in another way, more than {most}: {} at {} gets {} in place of {}",
            self.flips.len(),
            self.requests,
            first.request,
            first.time,
            first.after,
            first.before
        );
        Some(Diagnostic { message, ..at }.with_help("`portcullis replay` lists them all"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_are_tried() {
        let dir = tempfile::tempdir().unwrap();
        let line = |id: usize| {
            format!(
                "{{\"id\":\"{id}\",\"time\":\"2026-01-31T00:00:00Z\",\"listener\":\"main\",\"client\":\"127.0.0.1\",\"method\":\"GET\",\"target\":\"/\",\"headers\":[],\"body_bytes\":0,\"status\":200}}\n"
            )
        };
        let lines = |range: std::ops::Range<usize>| range.map(line).collect::<String>();
        fs::write(dir.path().join("r.jsonl.1"), lines(0..MOST)).unwrap();
        fs::write(dir.path().join("r.jsonl"), lines(MOST..MOST + 10) + "{\"id\":\"not whole").unwrap();
        let samples = samples(&dir.path().join("r.jsonl")).unwrap();
        assert_eq!((samples.len(), samples[0].id.as_str()), (MOST, "10"));
        assert!(super::samples(&dir.path().join("none")).unwrap_err().contains("none` can't be read"));
    }
}
