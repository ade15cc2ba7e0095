//! The policy of the conformance suite: does what the header `x-do` says. `policy.rhai` beside this
//! crate and `native.rs` do the same in the same order, for the other kinds.
//!
//! What only a module can do wrong stands in [`misbehave`], for the suite `sandbox.rs`.

use std::hint::black_box;

use portcullis_guest::*;

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    greeting: String,
}

struct Conformance(Config);

impl Policy for Conformance {
    type Config = Config;

    fn new(config: Config) -> Result<Self> {
        Ok(Conformance(config))
    }

    fn on_request(&mut self, exchange: &Exchange) -> Result<Verdict> {
        let request = exchange.request();
        match request.header("x-do").as_deref() {
            Some("deny") => {
                exchange.rests_on("the first rule");
                return deny(403, "conformance.denied");
            }
            Some("respond") => {
                let reply = Reply::new(201).header("x-made", "here");
                return respond(reply.body("text/plain; charset=utf-8", "made"));
            }
            Some("drop") => return Ok(Verdict::Drop),
            Some("fail") => panic!("as told"),
            Some("greet") => request.set_header("x-greeting", &self.0.greeting)?,
            Some("remove") => request.remove_header("x-secret")?,
            Some("rewrite") => {
                request.set_path("/rewritten")?;
                request.set_query(Some("by=policy"))?;
            }
            Some("identify") => {
                let principal =
                    Principal { id: "ann".into(), roles: vec!["admin".into()], ..Principal::default() };
                exchange.set_principal(&principal)?;
            }
            Some("read") => {
                let seen = [
                    ("method", Some(request.method())),
                    ("path", Some(request.path())),
                    ("host", Some(request.host())),
                    ("query", request.query_param("q")),
                    ("cookie", request.cookie("session")),
                    ("capture", exchange.capture("id")),
                    ("route", exchange.route()),
                    ("client", Some(exchange.client())),
                ];
                let seen = seen.map(|(name, value)| (name.to_owned(), value.into()));
                exchange.set_fact("seen", serde_json::Value::Object(seen.into_iter().collect()))?;
            }
            Some(what) => misbehave(what, &request)?,
            None => {}
        }
        proceed()
    }

    fn on_request_body(&mut self, exchange: &Exchange) -> Result<Verdict> {
        let request = exchange.request();
        if request.header("x-do").as_deref() == Some("upper") {
            request.set_body(request.body().unwrap_or_default().to_ascii_uppercase())?;
        }
        proceed()
    }

    fn on_upstream(&mut self, exchange: &Exchange) -> Result<Verdict> {
        if exchange.request().header("x-do").as_deref() == Some("attempt") {
            let number = exchange.attempt().map(|attempt| attempt.number.to_string());
            exchange.outgoing().set_header("x-attempt", number.unwrap_or_default())?;
        }
        proceed()
    }

    fn on_response(&mut self, exchange: &Exchange) -> Result<Verdict> {
        let response = exchange.response();
        match exchange.request().header("x-do").as_deref() {
            Some("stamp") => {
                response.set_header("x-stamp", response.status().unwrap_or_default().to_string())?;
                response.set_status(202)?;
            }
            Some("replace") => return deny(451, "conformance.replaced"),
            _ => {}
        }
        proceed()
    }

    fn on_response_body(&mut self, exchange: &Exchange) -> Result<Verdict> {
        if exchange.request().header("x-do").as_deref() == Some("wrap") {
            let body = exchange.response().body().unwrap_or_default();
            exchange.response().set_body([b"<".as_slice(), &body, b">"].concat())?;
        }
        proceed()
    }

    fn on_log(&mut self, exchange: &Exchange) -> Result<()> {
        let status = exchange.outcome().and_then(|outcome| outcome.status);
        if let Some(code) = exchange.grpc_status() {
            exchange.set_fact("grpc", code)?;
        }
        exchange.set_fact("logged", status.map_or_else(|| "none".to_owned(), |status| status.to_string()))
    }
}

fn misbehave(what: &str, request: &Request) -> Result<()> {
    match what {
        "spin" => loop {
            black_box(());
        },
        "bomb" => {
            let mut hoard = Vec::new();
            loop {
                hoard.push(black_box(vec![1_u8; 1 << 20]));
            }
        }
        "recurse" => {
            black_box(deeper(0));
            Ok(())
        }
        "huge_header" => request.set_header("x-huge", vec![b'x'; 8 << 20]),
        "own_failure" => Err(Error::new("not today")),
        _ => Ok(()),
    }
}

#[expect(unconditional_recursion, reason = "the stack is to end it")]
fn deeper(depth: u32) -> u32 {
    black_box(depth) + deeper(black_box(depth + 1))
}

export!(Conformance: on_request, on_request_body, on_upstream, on_response, on_response_body, on_log);
