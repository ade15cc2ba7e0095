//! What a script may do beside its exchange where its grants allow it. The bounds are those of [`Capabilities`].

use std::future::Future;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use http::{Method, Request, Response, Uri};
use portcullis_plugin::{Capabilities, Denied, Keyspace, StoreError};
use rhai::{Array, Dynamic, FLOAT, INT, ImmutableString, Map};

use super::Api;
use super::functions::map;
use super::text::hex;
use crate::call::{self, Outcome, charge, charge_operations};
use crate::value;
use crate::verdict;

/// What a cache, a limit or a counter costs, in operations.
const LOOK_UP: usize = 20;

/// What a call costs beside its bytes.
const CALL: usize = 100;

/// What a random number or a signature costs.
const CRYPTO: usize = 20;

/// A secret by its name. Its value is nowhere in a script.
#[derive(Debug, Clone)]
pub(super) struct Secret {
    name: ImmutableString,
    /// What stands before it in a header.
    scheme: ImmutableString,
}

pub(super) fn register(api: &mut Api<'_>, granted: &Arc<Capabilities>) {
    http(api, granted);
    cache(api, granted);
    store(api, granted);
    limits_and_counters(api, granted);
    clock(api, granted);
    random(api, granted);
    secrets(api, granted);
}

fn http(api: &mut Api<'_>, granted: &Arc<Capabilities>) {
    let caps = granted.clone();
    api.function(
        "http_get(upstream: string, target: string) -> map",
        "Asks an upstream of the configuration for a path with query. The answer has `status`, `headers` and `body`; no answer is an error. Needs the grant `http`.",
        r#"if http_get("idp", "/status?brief").status != 200 { return deny(503, "my_policy.idp"); }"#,
        move |upstream: &str, target: &str| {
            let parts = map([("target", target.into())]);
            send(&caps, upstream, parts)
        },
    );
    let caps = granted.clone();
    api.function(
        "http_send(upstream: string, request: map) -> map",
        "Sends a request with `method`, `target`, `headers` and `body`, each of which may be absent. A map or an array is sent as JSON; of headers, values may be secrets.",
        r##"let answer = http_send("idp", #{
    method: "POST", target: "/introspect", headers: #{ authorization: "Bearer " + secret("signing") },
    body: #{ token: ctx.request.headers["x-token"] },
});
if answer.status != 200 { return deny(401, "my_policy.token"); }"##,
        move |upstream: &str, parts: Map| send(&caps, upstream, parts),
    );
}

/// Makes a call and waits for its answer.
fn send(granted: &Arc<Capabilities>, upstream: &str, parts: Map) -> Outcome<Map> {
    allowed(granted.http())?;
    charge_operations(CALL)?;
    let request = request(granted, parts)?;
    let (caps, name) = (granted.clone(), upstream.to_owned());
    let mut made = call::calls();
    let (answer, made) = call::wait(async move {
        let answer = match caps.http().and_then(|http| http.send(&name, request, &mut made)) {
            Ok(answer) => Ok(answer.await),
            Err(denied) => Err(denied),
        };
        (answer, made)
    })?;
    call::note_calls(made);
    let answer = allowed(answer)?.map_err(|error| format!("no answer from `{upstream}`: {error}"))?;
    answered(answer)
}

fn request(granted: &Capabilities, mut parts: Map) -> Outcome<Request<Bytes>> {
    let mut request = Request::new(Bytes::new());
    if let Some(method) = parts.remove("method") {
        let method = value::text(method)?;
        *request.method_mut() =
            Method::from_bytes(method.as_bytes()).map_err(|_| format!("`{method}` is not a method"))?;
    }
    let target = parts.remove("target").map(value::text).transpose()?;
    *request.uri_mut() = match target {
        None => Uri::from_static("/"),
        Some(target) => path_and_query(&target)?,
    };
    if let Some(body) = parts.remove("body") {
        let (media_type, bytes) = verdict::content(body)?;
        if let Some(media_type) = media_type {
            request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
        }
        *request.body_mut() = bytes;
    }
    match parts.remove("headers").map(Dynamic::try_cast_result::<Map>) {
        None => {}
        Some(Ok(given)) => {
            for (name, value) in given {
                let name = verdict::header_name(&name)?;
                request.headers_mut().insert(name, header(granted, value)?);
            }
        }
        Some(Err(other)) => {
            return Err(format!("`headers` is a map, not `{}`", value::type_name(&other)).into());
        }
    }
    match parts.pop_first() {
        None => Ok(request),
        Some((name, _)) => {
            Err(format!("a request has `method`, `target`, `headers` and `body`, not `{name}`").into())
        }
    }
}

fn path_and_query(target: &str) -> Outcome<Uri> {
    charge(target.len())?;
    let target = Some(target).filter(|target| target.starts_with('/'));
    target
        .and_then(|target| target.parse().ok())
        .ok_or_else(|| "a target is a path with query, such as `/status?brief`".into())
}

/// A header's value, which may be a secret.
fn header(granted: &Capabilities, value: Dynamic) -> Outcome<HeaderValue> {
    let Secret { name, scheme } = match value.try_cast_result::<Secret>() {
        Ok(secret) => secret,
        Err(other) => return verdict::header_value(&value::text(other)?),
    };
    let secret = allowed(granted.secret(&name))?;
    let value = [scheme.as_bytes(), secret.expose()].concat();
    let mut value = HeaderValue::from_bytes(&value)
        .map_err(|_| format!("the secret `{name}` can't be a header's value"))?;
    value.set_sensitive(true);
    Ok(value)
}

fn answered(answer: Response<Bytes>) -> Outcome<Map> {
    let (head, body) = answer.into_parts();
    charge(body.len())?;
    let body = std::str::from_utf8(&body).map_err(|_| "the answer's body is not UTF-8 text")?;
    let status = INT::from(head.status.as_u16());
    Ok(map([("status", status.into()), ("headers", headers(&head.headers)?), ("body", body.into())]))
}

/// Headers by name; those that came several times are arrays.
fn headers(headers: &HeaderMap) -> Outcome<Dynamic> {
    let mut named = Map::new();
    for name in headers.keys() {
        let mut values = Array::new();
        for value in headers.get_all(name) {
            charge(value.len())?;
            values.push(String::from_utf8_lossy(value.as_bytes()).into_owned().into());
        }
        let several = values.len() > 1;
        let value = if several { values.into() } else { values.pop().unwrap_or_default() };
        named.insert(name.as_str().into(), value);
    }
    Ok(named.into())
}

fn cache(api: &mut Api<'_>, granted: &Arc<Capabilities>) {
    let caps = granted.clone();
    api.function(
        "cache_get(key: string) -> string | ()",
        "What was kept under this key and has not expired; `()` if there is nothing. Needs the grant `cache`.",
        r#"let seen = cache_get("last") ?? "nobody";"#,
        move |key: &str| -> Outcome<Dynamic> {
            charge_operations(LOOK_UP)?;
            let Some(value) = allowed(allowed(caps.cache())?.get(key))? else { return Ok(Dynamic::UNIT) };
            charge(value.len())?;
            Ok(String::from_utf8_lossy(&value).into_owned().into())
        },
    );
    let caps = granted.clone();
    api.function(
        "cache_set(key: string, value: string, seconds: int | float)",
        "Keeps a text under a key for so long, or until there is no room for it. The cache is the policy's own and outlives reloads.",
        r#"cache_set("last", ctx.client.address, 60);"#,
        move |key: &str, value: &str, seconds: Dynamic| -> Outcome<()> {
            charge_operations(LOOK_UP)?;
            charge(value.len())?;
            let value = Bytes::copy_from_slice(value.as_bytes());
            allowed(allowed(caps.cache())?.set(key, value, span(&seconds)?))
        },
    );
}

fn store(api: &mut Api<'_>, granted: &Arc<Capabilities>) {
    let caps = granted.clone();
    api.function(
        "store_get(key: string) -> string | ()",
        "What is kept under this key in the gateway's store, `()` if there is nothing. A store that can't answer is an error. Needs the grant `store`.",
        r#"if store_get(`banned/${ctx.client.address}`) != () { return deny(403, "my_policy.banned"); }"#,
        move |key: &str| -> Outcome<Dynamic> {
            let key = key.to_owned();
            let value = ask_store(&caps, 0, move |store: Keyspace| async move { store.get(&key).await })?;
            Ok(value.map_or(Dynamic::UNIT, |value| String::from_utf8_lossy(&value).into_owned().into()))
        },
    );
    let caps = granted.clone();
    api.function(
        "store_set(key: string, value: string, seconds: int | float)",
        "Keeps a text under a key for so long. Where the store is Redis, all gateways see it.",
        r#"store_set(`banned/${ctx.client.address}`, "by hand", 600);"#,
        move |key: &str, value: &str, seconds: Dynamic| -> Outcome<()> {
            let (key, value, lifetime) = (key.to_owned(), text(value), span(&seconds)?);
            ask_store(&caps, value.len(), move |store: Keyspace| async move {
                store.set(&key, value, lifetime).await
            })
        },
    );
    let caps = granted.clone();
    api.function(
        "store_replace(key: string, expected: string | (), value: string, seconds: int | float) -> bool",
        "The same if the key has the expected text, or none (`()`); whether it had.",
        r#"if !store_replace("leader", (), "me", 30) { log("there is one already"); }"#,
        move |key: &str, expected: Dynamic, value: &str, seconds: Dynamic| -> Outcome<bool> {
            let expected = if expected.is_unit() { None } else { Some(text(&value::text(expected)?)) };
            let (key, value, lifetime) = (key.to_owned(), text(value), span(&seconds)?);
            let bytes = value.len() + expected.as_ref().map_or(0, Bytes::len);
            ask_store(&caps, bytes, move |store: Keyspace| async move {
                store.compare_and_set(&key, expected, value, lifetime).await
            })
        },
    );
    let caps = granted.clone();
    api.function(
        "store_delete(key: string) -> bool",
        "Removes what is kept under a key; whether there was something.",
        r#"if store_delete(`banned/${ctx.client.address}`) { count("logins", "unbanned"); }"#,
        move |key: &str| -> Outcome<bool> {
            let key = key.to_owned();
            ask_store(&caps, 0, move |store: Keyspace| async move { store.delete(&key).await })
        },
    );
    let caps = granted.clone();
    api.function(
        "store_add(key: string, number: int, seconds: int | float) -> int",
        "Adds to a counter, and says what it comes to. It begins at zero, lives for so long from then on, and misses nobody's count.",
        r#"if store_add(`failed/${ctx.client.address}`, 1, 60) > 10 { return deny(429, "my_policy.too_often"); }"#,
        move |key: &str, number: INT, seconds: Dynamic| -> Outcome<INT> {
            let (key, lifetime) = (key.to_owned(), span(&seconds)?);
            ask_store(&caps, 0, move |store: Keyspace| async move { store.add(&key, number, lifetime).await })
        },
    );
}

/// Has the store do something that costs so many bytes, and waits for it.
fn ask_store<T: Send + 'static, F: Future<Output = Result<T, StoreError>> + Send + 'static>(
    granted: &Capabilities,
    bytes: usize,
    work: impl FnOnce(Keyspace) -> F,
) -> Outcome<T> {
    charge_operations(CALL)?;
    charge(bytes)?;
    let store = allowed(granted.store())?.clone();
    call::wait(work(store))?.map_err(|error| error.to_string().into())
}

fn text(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

/// Seconds as a time, of which there is none below zero.
fn span(seconds: &Dynamic) -> Outcome<Duration> {
    let seconds = seconds.as_float().or_else(|_| seconds.as_int().map(|seconds| seconds as FLOAT));
    let seconds = seconds.map_err(|found| format!("seconds are a number, not `{found}`"))?;
    if seconds.is_nan() || seconds < 0.0 {
        return Err("a time below zero".into());
    }
    Ok(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX))
}

fn limits_and_counters(api: &mut Api<'_>, granted: &Arc<Capabilities>) {
    let caps = granted.clone();
    api.function(
        "rate_limit(name: string, key: string) -> map",
        "Takes one from the limit of this name, for this key: `allowed`, how many are `left`, and if there was none, after how many seconds to try again (`retry_after`). Needs the grant `rate_limit`.",
        r#"if !rate_limit("login", ctx.client.address).allowed { return deny(429, "my_policy.slow_down"); }"#,
        move |name: &str, key: &str| -> Outcome<Map> {
            charge_operations(LOOK_UP)?;
            let taken = allowed(allowed(caps.limits())?.take(name, key))?;
            let wait = taken.more_in.filter(|_| !taken.is_allowed).unwrap_or_default();
            let retry_after = whole(wait.as_millis().div_ceil(1000));
            Ok(map([
                ("allowed", taken.is_allowed.into()),
                ("left", whole(taken.left.into()).into()),
                ("retry_after", retry_after.into()),
            ]))
        },
    );
    let count = |granted: &Arc<Capabilities>| {
        let caps = granted.clone();
        move |name: &str, label: &str| -> Outcome<()> {
            charge_operations(LOOK_UP)?;
            allowed(allowed(caps.counts())?.add(name, label, NonZeroU32::MIN))
        }
    };
    let add = count(granted);
    api.function(
        "count(name: string)",
        "Counts one more; the metrics page has it as `portcullis_plugin_rhai_counted_total`, with `name`. Needs the grant `metrics`.",
        r#"count("logins");"#,
        move |name: &str| add(name, ""),
    );
    api.function(
        "count(name: string, label: string)",
        "The same, by a label. Together a policy has at most 100 of them; what is beyond is counted as one.",
        r#"count("logins", ctx.request.method);"#,
        count(granted),
    );
}

fn clock(api: &mut Api<'_>, granted: &Arc<Capabilities>) {
    let caps = granted.clone();
    api.function(
        "now() -> int",
        "Seconds since 1970-01-01T00:00:00Z. Needs the grant `clock`.",
        "let expires = now() + 60;",
        move || -> Outcome<INT> { Ok(whole(since_epoch(allowed(caps.now())?).as_secs().into())) },
    );
    let caps = granted.clone();
    api.function(
        "now_ms() -> int",
        "Milliseconds since 1970-01-01T00:00:00Z.",
        "let start = now_ms();",
        move || -> Outcome<INT> { Ok(whole(since_epoch(allowed(caps.now())?).as_millis())) },
    );
}

fn since_epoch(time: SystemTime) -> Duration {
    time.duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn random(api: &mut Api<'_>, granted: &Arc<Capabilities>) {
    let caps = granted.clone();
    api.function(
        "random_hex(bytes: int) -> string",
        "So many random bytes that nobody can guess, in hexadecimal digits. Needs the grant `random`.",
        r#"ctx.request.headers["x-nonce"] = random_hex(16);"#,
        move |bytes: INT| -> Outcome<ImmutableString> {
            charge_operations(CRYPTO)?;
            Ok(hex(&allowed(caps.random(usize::try_from(bytes).unwrap_or(usize::MAX)))?).into())
        },
    );
    let caps = granted.clone();
    api.function(
        "random_int(below: int) -> int",
        "A random number from 0 on, and below the given one.",
        "if random_int(100) == 0 { log(\"one in a hundred\"); }",
        move |below: INT| -> Outcome<INT> {
            charge_operations(CRYPTO)?;
            let below = u64::try_from(below).ok().filter(|below| *below > 0);
            let below = below.ok_or("a random number is below 1 or more")?;
            let random = number(&allowed(caps.random(8))?);
            Ok(whole((u128::from(random) * u128::from(below)) >> 64))
        },
    );
    let caps = granted.clone();
    api.function(
        "uuid() -> string",
        "A random UUID (RFC 9562, 5.4).",
        r#"ctx.facts["order"] = uuid();"#,
        move || -> Outcome<ImmutableString> {
            charge_operations(CRYPTO)?;
            let mut bytes = allowed(caps.random(16))?;
            for (at, kept, set) in [(6, 0x0f, 0x40), (8, 0x3f, 0x80)] {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = *byte & kept | set;
                }
            }
            let mut text = hex(&bytes);
            for at in [20, 16, 12, 8] {
                text.insert(at, '-');
            }
            Ok(text.into())
        },
    );
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

fn secrets(api: &mut Api<'_>, granted: &Arc<Capabilities>) {
    let caps = granted.clone();
    api.function(
        "secret(name: string) -> Secret",
        "A secret of the configuration, to sign and to compare with, and for headers of `http_send`, where `\"Bearer \" + secret(..)` puts something before it. It can't be read: as text it is `<secret>`. Needs the grant `secrets`.",
        r#"let key = secret("signing"); if `${key}` != "<secret>" { throw "wrong"; }"#,
        move |name: ImmutableString| -> Outcome<Secret> {
            allowed(caps.secret(&name))?;
            Ok(Secret { name, scheme: ImmutableString::new() })
        },
    );
    api.engine.register_type_with_name::<Secret>("Secret");
    for name in ["to_string", "to_debug"] {
        api.engine.register_fn(name, |_: &mut Secret| "<secret>");
    }
    api.engine.register_fn("+", |scheme: ImmutableString, secret: Secret| -> Outcome<Secret> {
        charge(scheme.len())?;
        Ok(Secret { scheme: scheme + secret.scheme, ..secret })
    });
    let caps = granted.clone();
    api.function(
        "hmac_sha256_hex(key: Secret, text: string) -> string",
        "HMAC with SHA-256 (RFC 2104) under a secret key, in hexadecimal digits.",
        r#"let signature = hmac_sha256_hex(secret("signing"), ctx.request.path);"#,
        move |key: Secret, text: &str| -> Outcome<ImmutableString> {
            charge_operations(CRYPTO)?;
            charge(4 * text.len())?;
            Ok(hex(&allowed(caps.hmac_sha256(bare(&key)?, text.as_bytes()))?).into())
        },
    );
    let caps = granted.clone();
    api.function(
        "constant_time_eq(secret: Secret, text: string | ()) -> bool",
        "Whether a text is the secret, in a time that does not tell where they differ.",
        r#"if !constant_time_eq(secret("signing"), "hunter2") { return deny(401, "my_policy.key"); }"#,
        move |secret: Secret, text: Dynamic| -> Outcome<bool> {
            charge_operations(CRYPTO)?;
            let name = bare(&secret)?;
            if text.is_unit() {
                return Ok(false);
            }
            let text = value::text(text)?;
            charge(4 * text.len())?;
            allowed(caps.is_secret(name, text.as_bytes()))
        },
    );
}

/// The name of a secret that stands alone.
fn bare(secret: &Secret) -> Outcome<&str> {
    if secret.scheme.is_empty() {
        return Ok(&secret.name);
    }
    Err("a secret with text before it is for headers of `http_send` only".into())
}

fn allowed<T>(result: Result<T, Denied>) -> Outcome<T> {
    result.map_err(|denied| denied.to_string().into())
}

fn whole(number: u128) -> INT {
    INT::try_from(number).unwrap_or(INT::MAX)
}
