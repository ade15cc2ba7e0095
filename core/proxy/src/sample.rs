//! Requests that are written to a file as they came, for another generation to be tried on.

use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderName, Method};
use portcullis_plugin::{Exchange, LogSink, Outcome, Slot};
use serde::{Deserialize, Serialize};

use crate::live::Live;

/// What stands for a value that is not to be written.
const REDACTED: &str = "redacted";

/// Which requests are written, and what of them.
pub struct SamplePlan {
    /// Takes a line of JSON per request.
    pub sink: Arc<dyn LogSink>,
    /// How many of 2^32.
    pub share: u32,
    /// Longest body that is written.
    pub max_body: usize,
    /// Headers whose values are not.
    pub redact: Vec<HeaderName>,
    /// Parameters of the query whose values are not.
    pub redact_query: Vec<String>,
    /// Where a request is kept until it is known what became of it.
    pub slot: Slot<Sample>,
}

/// A request as it came, with what became of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// The request id.
    pub id: String,
    /// When its head was there, RFC 3339.
    pub time: String,
    /// The listener's name.
    pub listener: String,
    /// The client's address.
    pub client: IpAddr,
    /// The method.
    pub method: String,
    /// The normalised path with its query.
    pub target: String,
    /// Headers, `host` among them.
    pub headers: Vec<(String, String)>,
    /// The body, if a plugin had it read whole, it is text, and short enough.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
    /// Bytes of the body.
    pub body_bytes: u64,
    /// The upstream that answered and its status; none if somebody else answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upstream: Option<(String, u16)>,
    /// The status sent; none if nothing was.
    pub status: Option<u16>,
    /// Who answered in place of the upstream, and the reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decided_by: Option<(String, Option<String>)>,
}

/// Keeps a request whose head was understood, if its lot says so.
pub(crate) fn take(live: &mut Live) {
    if live.scope().generation.records.samples.is_none() {
        return;
    }
    let generation = live.scope().generation.clone();
    let Some(plan) = &generation.records.samples else { return };
    if live.client().worker.lot() as u32 >= plan.share {
        return;
    }
    let listener = live.scope().listener().name.to_string();
    let parts = live.parts();
    let shown = |name: &HeaderName, value: &http::HeaderValue| match plan.redact.contains(name) {
        true => REDACTED.to_owned(),
        false => String::from_utf8_lossy(value.as_bytes()).into_owned(),
    };
    let headers = parts.request.headers().iter();
    let sample = Sample {
        id: parts.id.to_string(),
        time: humantime::format_rfc3339_millis(std::time::SystemTime::now()).to_string(),
        listener,
        client: parts.client,
        method: parts.request.method().to_string(),
        target: parts.request.target_without(|name| plan.redact_query.iter().any(|it| it == name), REDACTED),
        headers: headers.map(|(name, value)| (name.to_string(), shown(name, value))).collect(),
        body: None,
        body_bytes: 0,
        upstream: None,
        status: None,
        decided_by: None,
    };
    live.exchange().set_slot(plan.slot, sample);
}

/// Adds the body of a request that was kept, before anybody changes it.
pub(crate) fn take_body(live: &mut Live, body: &Bytes) {
    if live.scope().generation.records.samples.is_none() {
        return;
    }
    let generation = live.scope().generation.clone();
    let Some(plan) = &generation.records.samples else { return };
    if let Some(sample) = live.exchange().slot_mut(plan.slot).filter(|_| body.len() <= plan.max_body) {
        sample.body = std::str::from_utf8(body).ok().map(str::to_owned);
    }
}

impl SamplePlan {
    /// Writes a request that was kept, now that it is known what became of it.
    pub(crate) fn write(&self, exchange: &mut Exchange, outcome: &Outcome) {
        let Some(mut sample) = exchange.take_slot(self.slot) else { return };
        let parts = exchange.core_ref();
        sample.status = outcome.status.map(|status| status.as_u16());
        sample.body_bytes = outcome.request_bytes;
        sample.decided_by = parts.decider.as_ref().map(|decider| {
            (decider.by.to_string(), decider.reason.as_ref().map(|reason| reason.to_string()))
        });
        if sample.decided_by.is_none() {
            sample.upstream =
                parts.attempt.as_ref().map(|attempt| attempt.upstream.to_string()).zip(sample.status);
        }
        if let Ok(mut line) = serde_json::to_vec(&sample) {
            line.push(b'\n');
            self.sink.write(&line);
        }
    }
}

impl Sample {
    /// The method, if it is one.
    pub fn method(&self) -> Option<Method> {
        Method::from_bytes(self.method.as_bytes()).ok()
    }
}
