//! `ctx` and what hangs on it, apart from the messages; `conn`.

use portcullis_plugin::{self as sdk, Exchange};
use rhai::{Dynamic, ImmutableString, Map};

use super::Api;
use super::functions::map;
use super::message::{Request, Response, Side};
use crate::call::{self, CallId, Outcome};
use crate::value;

/// The argument of a hook function.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Context(pub(crate) CallId);

/// The client.
#[derive(Debug, Clone, Copy)]
struct Client(CallId);

/// Who is calling.
#[derive(Debug, Clone, Copy)]
struct Principal(CallId);

/// The route.
#[derive(Debug, Clone, Copy)]
struct Route(CallId);

/// The route's captures.
#[derive(Debug, Clone, Copy)]
struct Captures(CallId);

/// The facts.
#[derive(Debug, Clone, Copy)]
struct Facts(CallId);

/// The argument of `on_connection`.
#[derive(Debug, Clone)]
pub(crate) struct Conn(pub(crate) sdk::Connection);

pub(super) fn register(api: &mut Api<'_>) {
    context(api);
    client(api);
    principal(api);
    route(api);
    facts(api);
    connection(api);
}

fn context(api: &mut Api<'_>) {
    api.on::<Context>();
    api.property("id: string", "The request id.", "log(ctx.id);", |ctx: &mut Context| {
        call::exchange(ctx.0, |exchange| Ok(exchange.id().to_string()))
    });
    api.function(
        "rests_on(rule: string)",
        "Names the rule that the verdict of this hook rests on, for the record beside the line of the script.",
        r#"ctx.rests_on("orders of others"); return deny(403, "my_policy.not_yours");"#,
        |ctx: &mut Context, rule: &str| {
            call::exchange(ctx.0, |exchange| {
                exchange.rests_on(rule);
                Ok(())
            })
        },
    );
    api.property(
        "request: Request",
        "The request as it came from the client, with the changes made so far.",
        "let path = ctx.request.path;",
        |ctx: &mut Context| Request::new(ctx.0, Side::Client),
    );
    api.handle::<Context, Request>();
    api.property(
        "outgoing: Request | ()",
        "The request of the current attempt, in `on_upstream`: changes hold for this attempt only.",
        r#"if ctx.outgoing != () { ctx.outgoing.headers["x-attempt"] = "1"; }"#,
        |ctx: &mut Context| {
            present(ctx.0, |exchange| exchange.outgoing().is_some(), Request::new(ctx.0, Side::Outgoing))
        },
    );
    api.handle::<Context, Request>();
    api.property(
        "response: Response | ()",
        "The response, from `on_response` on.",
        "let status = ctx.response.status;",
        |ctx: &mut Context| present(ctx.0, |exchange| exchange.response().is_some(), Response(ctx.0)),
    );
    api.handle::<Context, Response>();
    api.property(
        "client: Client",
        "The client.",
        "let address = ctx.client.address;",
        |ctx: &mut Context| Client(ctx.0),
    );
    api.handle::<Context, Client>();
    api.property(
        "principal: Principal | ()",
        "Who is calling, if a plugin established it. Set it to a map with `id` and, if you like, `issuer`, `roles`, `scopes`, `claims`.",
        r##"ctx.principal = #{ id: "alice", roles: ["admin"] };"##,
        |ctx: &mut Context| present(ctx.0, |exchange| exchange.principal().is_some(), Principal(ctx.0)),
    );
    api.writable(set_principal);
    api.handle::<Context, Principal>();
    api.property(
        "route: Route | ()",
        "The route; `()` if the request was refused before one was chosen.",
        "let name = ctx.route.name;",
        |ctx: &mut Context| present(ctx.0, |exchange| exchange.route().is_some(), Route(ctx.0)),
    );
    api.handle::<Context, Route>();
    api.property(
        "attempt: map | ()",
        "The current or last attempt: `number` (from 1), `upstream`, `endpoint`.",
        "if ctx.attempt.number > 1 { log(`again: ${ctx.attempt.endpoint}`); }",
        attempt,
    );
    api.property(
        "outcome: map | ()",
        "How it ended, in `on_log`: `end`, `status` (or `()`), `request_bytes`, `response_bytes`, `duration_us`, `upstream_duration_us` (or `()`), `grpc_status` (such as `UNAVAILABLE`, or `()`).",
        "if ctx.outcome.duration_us > 1_000_000 { log(\"warn\", \"slow\"); }",
        outcome,
    );
    api.property(
        "decider: map | ()",
        "Who answered in place of the upstream: `by`, `hook` and `reason`, the latter two possibly `()`.",
        "if ctx.decider != () { log(`answered by ${ctx.decider.by}`); }",
        decider,
    );
    api.property(
        "facts: Facts",
        "Facts that plugins of the chain leave for each other and for the access log.",
        r#"ctx.facts["tenant"] = "acme";"#,
        |ctx: &mut Context| Facts(ctx.0),
    );
    api.handle::<Context, Facts>();
}

/// `handle` if the exchange has what it stands for.
fn present<T>(call: CallId, has: impl FnOnce(&Exchange) -> bool, handle: T) -> Outcome<Dynamic>
where
    T: rhai::Variant + Clone,
{
    call::exchange(call, |exchange| Ok(if has(exchange) { Dynamic::from(handle) } else { Dynamic::UNIT }))
}

fn set_principal(ctx: &mut Context, principal: Map) -> Outcome<()> {
    let json = value::to_json(&Dynamic::from_map(principal))?;
    let principal = serde_json::from_value(json).map_err(|error| format!("not a principal: {error}"))?;
    call::exchange(ctx.0, |exchange| {
        exchange.set_principal(principal);
        Ok(())
    })
}

fn attempt(ctx: &mut Context) -> Outcome<Dynamic> {
    call::exchange(ctx.0, |exchange| {
        Ok(exchange.attempt().map_or(Dynamic::UNIT, |attempt| {
            Dynamic::from_map(map([
                ("number", i64::from(attempt.number).into()),
                ("upstream", (&*attempt.upstream).into()),
                ("endpoint", (&*attempt.endpoint).into()),
            ]))
        }))
    })
}

fn outcome(ctx: &mut Context) -> Outcome<Dynamic> {
    call::exchange(ctx.0, |exchange| {
        Ok(exchange.outcome().map_or(Dynamic::UNIT, |outcome| {
            let count = |count: u64| Dynamic::from(i64::try_from(count).unwrap_or(i64::MAX));
            let micros =
                |time: std::time::Duration| count(u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
            Dynamic::from_map(map([
                ("end", outcome.end.as_str().into()),
                ("status", outcome.status.map_or(Dynamic::UNIT, |status| i64::from(status.as_u16()).into())),
                ("request_bytes", count(outcome.request_bytes)),
                ("response_bytes", count(outcome.response_bytes)),
                ("duration_us", micros(outcome.duration)),
                ("grpc_status", value::text_or_unit(outcome.grpc_status)),
                ("upstream_duration_us", outcome.upstream_duration.map_or(Dynamic::UNIT, micros)),
            ]))
        }))
    })
}

fn decider(ctx: &mut Context) -> Outcome<Dynamic> {
    call::exchange(ctx.0, |exchange| {
        Ok(exchange.decider().map_or(Dynamic::UNIT, |decider| {
            Dynamic::from_map(map([
                ("by", (&*decider.by).into()),
                ("hook", decider.hook.map_or(Dynamic::UNIT, |hook| hook.as_str().into())),
                ("reason", value::text_or_unit(decider.reason.as_deref())),
            ]))
        }))
    })
}

fn client(api: &mut Api<'_>) {
    api.on::<Client>();
    api.property(
        "address: string",
        "The client's IP address: the peer's, or what a trusted proxy said.",
        r#"if ctx.client.address.starts_with("10.") { log("from inside"); }"#,
        |client: &mut Client| call::exchange(client.0, |exchange| Ok(exchange.client().to_string())),
    );
    api.property(
        "port: int",
        "The port of the peer that connected, which may be a proxy.",
        "let port = ctx.client.port;",
        |client: &mut Client| {
            call::exchange(client.0, |exchange| Ok(i64::from(exchange.connection().peer.port())))
        },
    );
    api.property(
        "listener: string",
        "Name of the listener that accepted the connection.",
        "let listener = ctx.client.listener;",
        |client: &mut Client| {
            call::exchange(client.0, |exchange| Ok(exchange.connection().listener.to_string()))
        },
    );
    api.property(
        "tls: map | ()",
        "What TLS settled: `version`, `server_name` (or `()`) and `certificate`, whether the client showed a verified one; `()` without TLS.",
        r#"if ctx.client.tls == () { return redirect(308, `https://${ctx.request.host}${ctx.request.path}`); }"#,
        tls,
    );
}

fn tls(client: &mut Client) -> Outcome<Dynamic> {
    call::exchange(client.0, |exchange| {
        Ok(exchange.connection().tls.as_ref().map_or(Dynamic::UNIT, |session| {
            Dynamic::from_map(map([
                ("version", session.version.into()),
                ("server_name", value::text_or_unit(session.server_name.as_deref())),
                ("certificate", (!session.client_chain.is_empty()).into()),
            ]))
        }))
    })
}

fn principal(api: &mut Api<'_>) {
    api.on::<Principal>();
    api.property(
        "id: string",
        "Stable identifier, e.g. a token's `sub`.",
        "log(ctx.principal.id);",
        |principal: &mut Principal| of_principal(*principal, |principal| Ok(principal.id.as_str().into())),
    );
    api.property(
        "issuer: string",
        "Who vouches for it.",
        "let issuer = ctx.principal.issuer;",
        |principal: &mut Principal| {
            of_principal(*principal, |principal| Ok(principal.issuer.as_str().into()))
        },
    );
    api.property(
        "roles: array",
        "Roles granted.",
        "for role in ctx.principal.roles { log(role); }",
        |principal: &mut Principal| of_principal(*principal, |principal| texts(&principal.roles)),
    );
    api.property(
        "scopes: array",
        "OAuth scopes granted.",
        "let count = ctx.principal.scopes.len();",
        |principal: &mut Principal| of_principal(*principal, |principal| texts(&principal.scopes)),
    );
    api.property(
        "claims: map",
        "Everything else that is known, such as a token's claims.",
        "let tenant = ctx.principal.claims.tenant;",
        |principal: &mut Principal| {
            of_principal(*principal, |principal| {
                let members = principal.claims.iter();
                let members =
                    members.map(|(name, value)| Ok((name.as_str().into(), value::from_json(value)?)));
                Ok(Dynamic::from_map(members.collect::<Outcome<Map>>()?))
            })
        },
    );
    api.function(
        "has_role(role: string) -> bool",
        "Whether a role is granted.",
        r#"if !ctx.principal.has_role("admin") { return deny(403, "my_policy.not_admin"); }"#,
        |principal: &mut Principal, role: &str| {
            of_principal(*principal, |principal| {
                Ok(principal.roles.iter().any(|granted| granted == role).into())
            })
        },
    );
    api.function(
        "has_scope(scope: string) -> bool",
        "Whether an OAuth scope is granted.",
        r#"if !ctx.principal.has_scope("read") { return deny(403, "my_policy.no_scope"); }"#,
        |principal: &mut Principal, scope: &str| {
            of_principal(*principal, |principal| {
                Ok(principal.scopes.iter().any(|granted| granted == scope).into())
            })
        },
    );
}

fn of_principal(
    principal: Principal,
    read: impl FnOnce(&sdk::Principal) -> Outcome<Dynamic>,
) -> Outcome<Dynamic> {
    call::exchange(principal.0, |exchange| exchange.principal().map_or(Ok(Dynamic::UNIT), read))
}

fn texts(texts: &[String]) -> Outcome<Dynamic> {
    call::charge_operations(texts.len())?;
    Ok(Dynamic::from_array(texts.iter().map(|text| text.as_str().into()).collect()))
}

fn route(api: &mut Api<'_>) {
    api.on::<Route>();
    api.property("name: string", "The route's name.", "let name = ctx.route.name;", |route: &mut Route| {
        call::exchange(route.0, |exchange| Ok(ImmutableString::from(exchange.route().unwrap_or_default())))
    });
    api.property(
        "captures: Captures",
        "What the route's path template captured.",
        r#"let id = ctx.route.captures["id"];"#,
        |route: &mut Route| Captures(route.0),
    );
    api.on::<Captures>();
    api.index(
        "[name: string] -> string | ()",
        "A capture, percent-encoded as it came.",
        r#"if ctx.route.captures["id"] != "42" { throw "wrong"; }"#,
        |captures: &mut Captures, name: &str| {
            call::exchange(captures.0, |exchange| Ok(value::text_or_unit(exchange.capture(name))))
        },
    );
    api.function(
        "names() -> array",
        "The names of all captures.",
        "for name in ctx.route.captures.names() { log(name); }",
        |captures: &mut Captures| {
            call::exchange(captures.0, |exchange| {
                Ok(Dynamic::from_array(exchange.captures().map(|(name, _)| name.into()).collect()))
            })
        },
    );
}

fn facts(api: &mut Api<'_>) {
    api.on::<Facts>();
    api.index(
        "[name: string] -> value | ()",
        "A fact: anything that JSON can express.",
        r#"ctx.facts["risk"] = 3; if ctx.facts["risk"] != 3 { throw "wrong"; }"#,
        |facts: &mut Facts, name: &str| {
            call::exchange(facts.0, |exchange| {
                exchange.fact(name).map_or(Ok(Dynamic::UNIT), value::from_json)
            })
        },
    );
    api.writable_index(|facts: &mut Facts, name: &str, value: Dynamic| {
        call::charge(name.len())?;
        let json = value::to_json(&value)?;
        call::exchange(facts.0, |exchange| {
            exchange.set_fact(name, json);
            Ok(())
        })
    });
}

fn connection(api: &mut Api<'_>) {
    api.on::<Conn>();
    api.property(
        "address: string",
        "The IP address that connected.",
        "log(conn.address);",
        |conn: &mut Conn| conn.0.peer.ip().to_canonical().to_string(),
    );
    api.property("port: int", "The port that connected.", "let port = conn.port;", |conn: &mut Conn| {
        i64::from(conn.0.peer.port())
    });
    api.property(
        "listener: string",
        "Name of the listener that accepted the connection.",
        r#"if conn.listener == "internal" && !conn.address.starts_with("10.") { return drop(); }"#,
        |conn: &mut Conn| conn.0.listener.to_string(),
    );
    api.property(
        "local: string",
        "The address that was connected to, with its port.",
        "let local = conn.local;",
        |conn: &mut Conn| conn.0.local.to_string(),
    );
}
