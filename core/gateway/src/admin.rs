//! The admin interface: how the gateway is, for people, probes and Prometheus.
//!
//! It has no authentication, so it is meant for loopback, and refuses what a web page could make a browser on
//! the same machine send: a foreign `Host` (DNS rebinding), and a `POST` with an `Origin`.

mod metrics;

use std::net::IpAddr;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HOST, HeaderMap, HeaderValue, ORIGIN};
use hyper::http::uri::Authority;
use hyper::{Method, Request, Response, StatusCode, Uri};
use portcullis_control::{Control, ReloadOutcome, Status, Trigger, utc};
use portcullis_proxy::metrics::{Metrics, ShadowMetrics, WouldRefuse};
use portcullis_proxy::record::Records;
use serde_json::{Value, json};

use self::metrics::{ControlFacts, Facts};
use crate::process::Usage;
use crate::server::Limits;
use crate::sinks::Sinks;

/// Bounds of the interface. A reload may have to compile, so a connection lives long enough for that; without
/// keep-alive, idle connections can't use up the few there are.
pub(crate) const LIMITS: Limits =
    Limits { connections: 64, lifetime: Duration::from_secs(120), keep_alive: false };

/// What there is, in the order of its listing.
static PATHS: [(&str, Method, &str); 8] = [
    ("/healthz", Method::GET, "200 while the process lives"),
    (
        "/readyz",
        Method::GET,
        "200 while it serves traffic; 503 before the first generation and while it drains",
    ),
    ("/status", Method::GET, "everything about the running generation, as JSON"),
    ("/metrics", Method::GET, "counters for Prometheus"),
    (
        "/records",
        Method::GET,
        "the latest requests that were refused or failed, as JSON; ?passed=true for others, last=COUNT, and by, reason, \
         route, client",
    ),
    ("/shadow", Method::GET, "what plugins in shadow would have done since the start, as JSON"),
    (ONE_RECORD, Method::GET, "what became of the request with this id, and why, as JSON"),
    ("/reload", Method::POST, "reload now; 422 with the reasons if it is refused"),
];

const ONE_RECORD: &str = "/records/{id}";

/// Records that are listed at most, and where nobody says how many.
const MAX_LISTED: usize = 1000;
const LISTED: usize = 20;

/// What the interface answers from.
pub(crate) struct Admin {
    metrics: Arc<Metrics>,
    sinks: Arc<Sinks>,
    started: Instant,
    started_at: SystemTime,
    draining: AtomicBool,
    control: OnceLock<(Control, Arc<Records>)>,
}

type Answer = Response<Full<Bytes>>;

impl Admin {
    /// An interface to a gateway that is starting.
    pub(crate) fn new(metrics: Arc<Metrics>, sinks: Arc<Sinks>) -> Self {
        let (draining, control) = (AtomicBool::new(false), OnceLock::new());
        let (started, started_at) = (Instant::now(), SystemTime::now());
        Admin { metrics, sinks, started, started_at, draining, control }
    }

    /// The first generation runs.
    pub(crate) fn serving(&self, control: Control, records: Arc<Records>) {
        // A second call would be for the same control plane.
        let _ = self.control.set((control, records));
    }

    /// The gateway shuts down.
    pub(crate) fn draining(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Answers one request; bodies are not read.
    pub(crate) async fn answer<B>(self: Arc<Self>, request: Request<B>) -> Answer {
        let (head, _) = request.into_parts();
        let mut answer = match screen(&head.method, head.uri.path(), &head.headers) {
            Ok(path) => self.page(path, &head.uri).await,
            Err(refusal) => refusal.answer(),
        };
        answer.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        answer
    }

    async fn page(&self, path: &str, asked: &Uri) -> Answer {
        let control = self.control.get().map(|(control, _)| control);
        match (path, self.control.get()) {
            ("/healthz", _) => text(StatusCode::OK, "ok\n"),
            ("/metrics", _) => {
                let page = metrics::render(&self.metrics, &self.facts(control));
                typed(StatusCode::OK, metrics::CONTENT_TYPE, page)
            }
            ("/readyz", _) => self.readiness(control.map(latest).as_deref()),
            (_, None) => text(StatusCode::SERVICE_UNAVAILABLE, "starting: there is no generation yet\n"),
            ("/shadow", _) => shadows(&self.metrics),
            ("/records", Some((_, records))) => listed(records, asked.query().unwrap_or_default()),
            (ONE_RECORD, Some((_, records))) => record(records, asked.path()),
            ("/reload", Some((control, _))) => reloaded(control.reload(Trigger::Admin).await),
            (_, Some((control, _))) => self.status(&control.status().await),
        }
    }

    fn readiness(&self, status: Option<&Status>) -> Answer {
        let (code, mut line) = match status {
            _ if self.draining.load(Ordering::Relaxed) => {
                (StatusCode::SERVICE_UNAVAILABLE, "draining: the gateway shuts down\n".to_owned())
            }
            None => (StatusCode::SERVICE_UNAVAILABLE, "starting: there is no generation yet\n".to_owned()),
            Some(status) => (StatusCode::OK, format!("ready: generation {}\n", status.generation)),
        };
        if let Some((status, refused)) = status.and_then(|status| Some((status, status.last_error.as_ref()?)))
        {
            line.push_str(&match status.last_good {
                Some(at) => {
                    format!("serving the last good inputs of {}, because of what is on disk:\n\n", utc(at))
                }
                None => "the last reload was refused, the policy before it runs on:\n\n".to_owned(),
            });
            line.push_str(&refused.diagnostics.render(false));
        }
        text(code, line)
    }

    fn status(&self, status: &Status) -> Answer {
        let last_error = &status.last_error;
        let mut status = json!(status);
        if let Value::Object(fields) = &mut status {
            fields.insert("gateway_version".into(), env!("CARGO_PKG_VERSION").into());
            fields.insert("uptime_seconds".into(), self.started.elapsed().as_secs().into());
            fields.insert("draining".into(), self.draining.load(Ordering::Relaxed).into());
            if let (Some(error), Some(Value::Object(shown))) = (last_error, fields.get_mut("last_error")) {
                shown.insert("text".into(), error.diagnostics.render(false).into());
            }
        }
        typed(StatusCode::OK, "application/json", format!("{status:#}\n"))
    }

    fn facts(&self, control: Option<&Control>) -> Facts {
        let control = control.map(latest).map(|status| ControlFacts {
            generation: status.generation,
            reloads: vec![
                ("applied", status.reloads.applied),
                ("refused", status.reloads.refused),
                ("unchanged", status.reloads.unchanged),
            ],
            refused: status.last_error.is_some(),
            upstreams: status.upstreams.clone(),
            plugins: status.plugins.clone(),
        });
        Facts {
            started: self.started_at.duration_since(UNIX_EPOCH).unwrap_or_default(),
            usage: Usage::now(),
            draining: self.draining.load(Ordering::Relaxed),
            logs_dropped: self.sinks.dropped(),
            control,
        }
    }
}

/// What runs, without looking at the files on disk.
fn latest(control: &Control) -> Arc<Status> {
    control.subscribe().borrow().clone()
}

/// Why a request is not answered.
#[derive(Debug, Clone, Copy)]
enum Refusal {
    /// It names a host that may be anybody's.
    Host,
    /// There is no such path.
    Path,
    /// The path takes another method.
    Method { path: &'static str, allowed: &'static Method },
    /// It comes from a web page.
    Page,
}

/// The path of a request that may be answered.
fn screen(method: &Method, path: &str, headers: &HeaderMap) -> Result<&'static str, Refusal> {
    if !is_local_host(headers) {
        return Err(Refusal::Host);
    }
    let is_it = |known: &str| match known.strip_suffix("{id}") {
        Some(front) => path.strip_prefix(front).is_some_and(|id| !id.is_empty()),
        None => known == path,
    };
    let (path, allowed, _) = PATHS.iter().find(|(known, ..)| is_it(known)).ok_or(Refusal::Path)?;
    if method != allowed && !(method == Method::HEAD && allowed == Method::GET) {
        return Err(Refusal::Method { path, allowed });
    }
    if method == Method::POST && headers.contains_key(ORIGIN) {
        return Err(Refusal::Page);
    }
    Ok(path)
}

impl Refusal {
    fn answer(self) -> Answer {
        match self {
            Refusal::Host => {
                let why =
                    "the Host header must be an address or localhost: this interface is not for web pages\n";
                text(StatusCode::MISDIRECTED_REQUEST, why)
            }
            Refusal::Path => text(StatusCode::NOT_FOUND, listing()),
            Refusal::Method { path, allowed } => {
                let mut answer =
                    text(StatusCode::METHOD_NOT_ALLOWED, format!("{path} takes {allowed} only\n"));
                if let Ok(allowed) = HeaderValue::from_str(allowed.as_str()) {
                    answer.headers_mut().insert(ALLOW, allowed);
                }
                answer
            }
            Refusal::Page => text(StatusCode::FORBIDDEN, "requests from web pages are refused\n"),
        }
    }
}

/// A name that an attacker controls may lead here; an address or `localhost` is what was typed.
fn is_local_host(headers: &HeaderMap) -> bool {
    let Some(authority) = headers.get(HOST).and_then(|host| Authority::from_str(host.to_str().ok()?).ok())
    else {
        return false;
    };
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok()
}

fn listing() -> String {
    let lines = PATHS.iter().map(|(path, method, help)| format!("{:9} {method:4}  {help}\n", path));
    ["there is:\n\n".to_owned()].into_iter().chain(lines).collect()
}

fn shadows(metrics: &Metrics) -> Answer {
    let plugins = metrics.plugins();
    let seen = plugins.iter().filter(|(_, counted)| counted.shadow.has_seen()).map(|(name, counted)| {
        let verdicts = ShadowMetrics::VERDICTS.iter().zip(&counted.shadow.verdicts);
        let verdicts: serde_json::Map<_, _> =
            verdicts.map(|(verdict, count)| ((*verdict).to_owned(), count.value().into())).collect();
        let WouldRefuse { reasons, clients } = counted.shadow.refused();
        let reasons = reasons.into_iter().map(|((reason, route), count)| (count, reason, route));
        let mut reasons: Vec<_> = reasons.collect();
        reasons.sort_by(|one, other| other.cmp(one));
        let mut clients: Vec<_> = clients.into_iter().map(|(client, count)| (count, client)).collect();
        clients.sort_by(|one, other| other.cmp(one));
        json!({
            "plugin": name,
            "kind": counted.kind,
            "requests": counted.shadow.exchanges.value(),
            "would_refuse": reasons.iter().map(|(count, ..)| count).sum::<u64>(),
            "verdicts": verdicts,
            "reasons": reasons.iter().map(|(count, reason, route)| {
                json!({ "reason": reason, "route": route, "requests": count })
            }).collect::<Vec<_>>(),
            "clients": clients.iter().take(LISTED).map(|(count, client)| {
                json!({ "client": client, "requests": count })
            }).collect::<Vec<_>>(),
        })
    });
    typed(StatusCode::OK, "application/json", format!("{:#}\n", Value::from(seen.collect::<Vec<_>>())))
}

fn record(records: &Records, path: &str) -> Answer {
    let id = path.rsplit('/').next().unwrap_or_default();
    match records.find(id) {
        Some(record) => typed(StatusCode::OK, "application/json", format!("{:#}\n", json!(record))),
        None => {
            let why = format!(
                "no request with the id `{id}` is remembered: it is still under way, or others have pushed it out \
                 (`records` in the configuration says how many are kept)\n"
            );
            text(StatusCode::NOT_FOUND, why)
        }
    }
}

fn listed(records: &Records, query: &str) -> Answer {
    let (mut passed, mut count, mut wishes) = (false, LISTED, Vec::new());
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        match (&*name, value.parse()) {
            ("passed", _) => passed = value == "true",
            ("last", Ok(number)) => count = MAX_LISTED.min(number),
            ("by" | "reason" | "route" | "client", _) => wishes.push((name, value)),
            _ => return text(StatusCode::BAD_REQUEST, format!("`{name}={value}` says nothing here\n")),
        }
    }
    let found = records.latest(!passed, count, |record| {
        wishes.iter().all(|(name, wanted)| {
            let decision = record.decided_by.as_ref();
            match &**name {
                "by" => decision.is_some_and(|decision| decision.by == **wanted),
                "reason" => decision.is_some_and(|decision| decision.reason.as_deref() == Some(wanted)),
                "route" => record.route.as_deref() == Some(wanted),
                _ => wanted.parse().is_ok_and(|wanted: IpAddr| wanted == record.client),
            }
        })
    });
    typed(StatusCode::OK, "application/json", format!("{:#}\n", json!(found)))
}

fn reloaded(outcome: ReloadOutcome) -> Answer {
    let (code, body) = match outcome {
        ReloadOutcome::Applied { number } => {
            (StatusCode::OK, json!({ "outcome": "applied", "generation": number }))
        }
        ReloadOutcome::Unchanged => (StatusCode::OK, json!({ "outcome": "unchanged" })),
        ReloadOutcome::Refused(diagnostics) => {
            let text = diagnostics.render(false);
            let body = json!({ "outcome": "refused", "text": text, "diagnostics": diagnostics });
            (StatusCode::UNPROCESSABLE_ENTITY, body)
        }
    };
    typed(code, "application/json", format!("{body:#}\n"))
}

fn text(code: StatusCode, body: impl Into<Bytes>) -> Answer {
    typed(code, "text/plain; charset=utf-8", body)
}

fn typed(code: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = code;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server;
    use std::path::Path;

    async fn asked(admin: &Arc<Admin>, request: &str) -> (u16, String) {
        let mut parts = request.split(' ');
        let mut builder = Request::builder().method(parts.next().unwrap()).uri(parts.next().unwrap());
        for header in parts {
            let (name, value) = header.split_once('=').unwrap();
            builder = builder.header(name, value);
        }
        let answer = admin.clone().answer(builder.body(()).unwrap()).await;
        let code = answer.status().as_u16();
        let body = server::whole(answer.into_body(), 1 << 20).await.unwrap();
        (code, String::from_utf8(body).unwrap())
    }

    fn starting() -> Arc<Admin> {
        Arc::new(Admin::new(Arc::new(Metrics::new(1)), Arc::new(Sinks::new(Path::new(".")))))
    }

    #[tokio::test]
    async fn before_the_first_generation_it_is_alive_but_not_ready() {
        let admin = starting();
        assert_eq!(asked(&admin, "GET /healthz host=127.0.0.1").await, (200, "ok\n".into()));
        assert_eq!(asked(&admin, "GET /readyz host=127.0.0.1").await.0, 503);
        assert_eq!(asked(&admin, "GET /status host=127.0.0.1").await.0, 503);
        assert_eq!(asked(&admin, "POST /reload host=127.0.0.1").await.0, 503);
        assert!(asked(&admin, "GET /metrics host=127.0.0.1").await.1.contains("process_start_time_seconds"));
    }

    #[tokio::test]
    async fn while_it_drains_it_is_not_ready() {
        let admin = starting();
        admin.draining();
        let (code, text) = asked(&admin, "GET /readyz host=localhost").await;
        assert_eq!((code, text.starts_with("draining")), (503, true));
    }

    #[tokio::test]
    async fn wrong_methods_and_paths_are_told_what_is_right() {
        let admin = starting();
        assert_eq!(
            asked(&admin, "POST /status host=localhost").await,
            (405, "/status takes GET only\n".into())
        );
        assert_eq!(
            asked(&admin, "GET /reload host=localhost").await,
            (405, "/reload takes POST only\n".into())
        );
        let (code, text) = asked(&admin, "GET /nothing host=localhost").await;
        assert!(code == 404 && PATHS.iter().all(|(path, ..)| text.contains(path)), "{text}");
        assert_eq!(asked(&admin, "HEAD /healthz host=localhost").await.0, 200);
    }

    #[tokio::test]
    async fn only_addresses_and_localhost_are_hosts() {
        let admin = starting();
        for host in ["127.0.0.1", "127.0.0.1:9901", "[::1]:9901", "[::1]", "localhost:9901", "LOCALHOST"] {
            assert_eq!(asked(&admin, &format!("GET /healthz host={host}")).await.0, 200, "{host}");
        }
        for host in ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "a@b"] {
            assert_eq!(asked(&admin, &format!("GET /healthz host={host}")).await.0, 421, "{host}");
        }
        assert_eq!(asked(&admin, "GET /healthz").await.0, 421);
    }

    #[tokio::test]
    async fn a_web_page_cannot_reload() {
        let (code, _) =
            asked(&starting(), "POST /reload host=127.0.0.1:9901 origin=http://evil.example").await;
        assert_eq!(code, 403);
    }
}
