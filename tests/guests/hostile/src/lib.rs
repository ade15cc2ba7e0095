//! Does whatever its configuration says: `{ do: spin }`, or per hook, `{ on_log: panic }`. Most of it
//! is bad, so that tests can see what the gateway makes of it.

use std::fmt::Debug;
use std::hint::black_box;
use std::time::Duration;

use portcullis_guest::*;

const MINUTE: Duration = Duration::from_secs(60);

#[derive(Default, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Config {
    r#do: Option<Act>,
    on_connection: Option<Act>,
    on_request: Option<Act>,
    on_request_body: Option<Act>,
    on_upstream: Option<Act>,
    on_response: Option<Act>,
    on_response_body: Option<Act>,
    on_log: Option<Act>,
    /// Refused at load.
    refuse_config: bool,
}

#[derive(Clone, Copy, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
enum Act {
    /// Never returns.
    Spin,
    /// Takes memory without end.
    Bomb,
    /// Calls itself without end.
    Recurse,
    /// Hands the host a very large header value.
    HugeHeader,
    /// Floods the log.
    Chatter,
    Panic,
    Fail,
    Deny,
    Respond,
    Drop,
    /// Counts the hooks that this instance has run in a header of the message at hand.
    Count,
    /// Reads and changes whatever there is, and says what it saw.
    Tour,
    /// Uses every capability, and says what came of it.
    Use,
    /// Calls the upstream `origin` until it is denied, and says how often that went well.
    Calls,
    /// Calls the upstream `origin` for its path, and hands its answer on.
    Ask,
    /// Fills its cache.
    Hoard,
    /// Counts under ever new labels.
    Label,
    /// Takes what a limit has.
    Exhaust,
}

struct Hostile {
    config: Config,
    count: u32,
}

impl Hostile {
    fn act(&mut self, own: Option<Act>, exchange: &Exchange) -> Result<Verdict> {
        self.count += 1;
        match own.or(self.config.r#do) {
            None => proceed(),
            Some(Act::Spin) => spin(),
            Some(Act::Bomb) => bomb(),
            Some(Act::Recurse) => deny(400 + recurse(1) as u16 % 2, "hostile.recursed"),
            Some(Act::HugeHeader) => {
                exchange.request().set_header("x-huge", vec![b'x'; 2 << 20])?;
                proceed()
            }
            Some(Act::Chatter) => {
                (0..10_000).for_each(|line| log(Level::Info, &format!("line {line} {}", "x".repeat(10_000))));
                proceed()
            }
            Some(Act::Panic) => panic!("the guest lost its head"),
            Some(Act::Fail) => Err(Error::new("not today")),
            Some(Act::Deny) => deny(418, "hostile.deny"),
            Some(Act::Respond) => {
                respond(Reply::new(200).header("x-by", "hostile").body("text/plain", "hello"))
            }
            Some(Act::Drop) => Ok(Verdict::Drop),
            Some(Act::Count) => {
                let count = self.count.to_string();
                match exchange.response().status() {
                    Some(_) => exchange.response().set_header("x-count", count)?,
                    None => exchange.request().set_header("x-count", count)?,
                }
                proceed()
            }
            Some(Act::Tour) => tour(exchange),
            Some(Act::Use) => use_all(exchange),
            Some(Act::Calls) => {
                let went_well = |_: &u32| call("origin", Call::new("GET", "/")).is_ok();
                let calls = (0..1000).take_while(went_well).count();
                exchange.request().set_header("x-calls", calls.to_string())?;
                proceed()
            }
            Some(Act::Ask) => {
                let asked = Call::new("POST", &exchange.request().path()).header("x-asked", "yes").body("question");
                let answer = call("origin", asked)?;
                exchange.request().set_header("x-answer", answer.header("x-answer").unwrap_or("none"))?;
                exchange.request().set_header("x-answered", format!("{} {}", answer.status, answer.body.len()))?;
                proceed()
            }
            Some(Act::Hoard) => {
                for entry in 0..300 {
                    keep(&format!("entry {entry}"), &[0; 4096], MINUTE)?;
                }
                let is_kept = |entry: &u32| cached(&format!("entry {entry}")).is_ok_and(|value| value.is_some());
                exchange.request().set_header("x-kept", (0..300).filter(is_kept).count().to_string())?;
                proceed()
            }
            Some(Act::Exhaust) => {
                let is_allowed = |_: &u32| take("login", "ann").is_ok_and(|taken| taken.allowed);
                exchange.request().set_header("x-taken", (0..100).take_while(is_allowed).count().to_string())?;
                proceed()
            }
            Some(Act::Label) => {
                for label in 0..300 {
                    count("seen", &label.to_string(), 1)?;
                }
                proceed()
            }
        }
    }
}

fn spin() -> ! {
    let mut turns = 0_u64;
    loop {
        turns = black_box(turns.wrapping_add(1));
    }
}

fn bomb() -> ! {
    let mut hoard = Vec::new();
    loop {
        hoard.push(black_box(vec![1_u8; 1 << 20]));
    }
}

#[expect(unconditional_recursion)]
fn recurse(depth: u32) -> u32 {
    black_box(depth) + recurse(black_box(depth + 1))
}

fn tour(exchange: &Exchange) -> Result<Verdict> {
    let request = exchange.request();
    let seen = serde_json::json!({
        "id": exchange.id(),
        "client": exchange.client(),
        "scheme": exchange.scheme(),
        "listener": exchange.connection().listener,
        "peer": exchange.connection().peer,
        "route": exchange.route(),
        "capture": exchange.capture("id"),
        "original_target": exchange.original_target(),
        "method": request.method(),
        "path": request.path(),
        "query": request.query(),
        "query_param": request.query_param("q"),
        "host": request.host(),
        "cookie": request.cookie("session"),
        "header": request.header("X-Test"),
        "headers": request.headers().len(),
        "body": request.body().map(|body| body.len()),
        "principal": exchange.principal().map(|principal| principal.id),
        "attempt": exchange.attempt().map(|attempt| format!("{} {}", attempt.upstream, attempt.endpoint)),
        "status": exchange.response().status(),
        "outcome": exchange.outcome().map(|outcome| outcome.end),
        "now": now().is_ok_and(|now| now > 1_700_000_000_000),
        "fact": exchange.fact::<u32>("before"),
    });
    exchange.set_fact("seen", &seen)?;
    exchange.set_principal(&Principal {
        id: "guest".into(),
        roles: vec!["tourist".into()],
        ..Principal::default()
    })?;
    request.set_method("PUT")?;
    request.set_path("/elsewhere")?;
    request.set_query(Some("a=b"))?;
    request.set_header("x-set", "1")?;
    request.append_header("x-set", "2")?;
    request.remove_header("x-test")?;
    let refused =
        [request.set_path("no-slash"), request.set_header("bad name", "x"), request.set_header("x", "a\nb")];
    exchange.set_fact("refused", refused.iter().filter(|result| result.is_err()).count())?;
    proceed()
}

fn use_all(exchange: &Exchange) -> Result<Verdict> {
    let seen = [
        ("http", told(call("origin", Call::new("GET", "/")).map(|answer| answer.status))),
        ("cache_set", told(keep("a", b"1", MINUTE))),
        ("cache", told(cached("a"))),
        ("store", told(store("a", b"1", MINUTE))),
        ("store_replace", told(store_replace("a", Some(b"1"), b"2", MINUTE))),
        ("stored", told(stored("a"))),
        ("store_add", told(store_add("n", 2, MINUTE))),
        ("store_delete", told(store_delete("n"))),
        ("rate_limit", told(take("login", "ann").map(|taken| (taken.allowed, taken.left)))),
        ("metrics", told(count("seen", "", 2))),
        ("clock", told(now().map(|now| now > 1_700_000_000_000))),
        ("random", told(random(16).map(|bytes| bytes.len()))),
        ("secrets", told(hmac_sha256("signing", b"text").map(|code| (code[0], code.len())))),
        ("is_secret", told(is_secret("signing", b"hunter2"))),
        (
            "secret_header",
            told(call("origin", Call::new("GET", "/").secret_header("authorization", "Bearer ", "signing")).map(
                |answer| String::from_utf8_lossy(&answer.body).contains(r#""authorization":"Bearer hunter2""#),
            )),
        ),
        (
            "unknown_secret",
            told(call("origin", Call::new("GET", "/").secret_header("authorization", "", "other")).map(|_| ())),
        ),
    ];
    let seen = seen.into_iter().map(|(name, told)| (name.to_owned(), told.into())).collect();
    exchange.set_fact("seen", serde_json::Value::Object(seen))?;
    proceed()
}

fn told<T: Debug>(outcome: Result<T>) -> String {
    match outcome {
        Ok(value) => format!("{value:?}"),
        Err(error) => error.to_string(),
    }
}

impl Policy for Hostile {
    type Config = Config;

    fn new(config: Config) -> Result<Self> {
        if config.refuse_config {
            return Err(Error::new("refused as told"));
        }
        Ok(Hostile { config, count: 0 })
    }

    fn on_connection(&mut self, client: Connection) -> Result<Admission> {
        match self.config.on_connection {
            Some(Act::Spin) => spin(),
            Some(Act::Panic) => panic!("the guest lost its head"),
            Some(Act::Drop) => Ok(Admission::Drop),
            Some(Act::Ask) => {
                let asked = call("origin", Call::new("GET", "/")).map(|answer| answer.status);
                log(Level::Warn, &told(asked));
                log(Level::Warn, &told(stored("a")));
                Ok(Admission::Accept)
            }
            Some(Act::Count) if client.peer.starts_with("203.") => Ok(Admission::Drop),
            _ => Ok(Admission::Accept),
        }
    }

    fn on_request(&mut self, exchange: &Exchange) -> Result<Verdict> {
        self.act(self.config.on_request, exchange)
    }

    fn on_request_body(&mut self, exchange: &Exchange) -> Result<Verdict> {
        if let Some(body) = exchange.request().body() {
            exchange.request().set_body(body.to_ascii_uppercase())?;
        }
        self.act(self.config.on_request_body, exchange)
    }

    fn on_upstream(&mut self, exchange: &Exchange) -> Result<Verdict> {
        exchange
            .outgoing()
            .set_header("x-attempt", exchange.attempt().map_or(0, |attempt| attempt.number).to_string())?;
        self.act(self.config.on_upstream, exchange)
    }

    fn on_response(&mut self, exchange: &Exchange) -> Result<Verdict> {
        self.act(self.config.on_response, exchange)
    }

    fn on_response_body(&mut self, exchange: &Exchange) -> Result<Verdict> {
        if let Some(body) = exchange.response().body() {
            exchange.response().set_body([b"<".as_slice(), &body, b">"].concat())?;
        }
        self.act(self.config.on_response_body, exchange)
    }

    fn on_log(&mut self, exchange: &Exchange) -> Result<()> {
        exchange.set_fact("logged", self.count)?;
        self.act(self.config.on_log, exchange).map(|_| ())
    }
}

export!(
    Hostile: on_connection, on_request, on_request_body, on_upstream, on_response, on_response_body, on_log
);
