//! The host functions. One that can't do what it is asked to traps, as the ABI has it.

use std::future::poll_fn;
use std::net::SocketAddr;

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use tracing::Level;
use wasmtime::{Engine, Error, ExternType, Linker, Module, Result, bail, ensure};

use super::abi::{FEATURES, HeaderKind, MODULE, body_kind, pair, write_values};
use super::host::{Host, Stage};
use crate::Way;
use crate::host::{final_status, header};
use crate::memory::{CoreHost, parts, slice, write};
use crate::wasi;

type Caller<'a> = wasmtime::Caller<'a, Host>;

/// Fields that a guest may have in a trailer section.
const MAX_TRAILERS: usize = 64;

/// What links a module, whatever it imports, and the names of what it imports that nobody knows.
pub(super) fn linker(engine: &Engine, module: &Module) -> Result<(Linker<Host>, Vec<String>)> {
    let mut linker = Linker::new(engine);
    define(&mut linker)?;
    wasi::define(&mut linker)?;
    linker.allow_shadowing(true);
    let mut unknown = Vec::new();
    for import in module.imports() {
        let (module, name) = (import.module(), import.name());
        let ExternType::Func(ty) = import.ty() else { continue };
        match module {
            MODULE if DEFINED.contains(&name) => {}
            wasi::MODULE | wasi::UNSTABLE => wasi::refuse(&mut linker, module, name, ty)?,
            _ => {
                let full = format!("{module}.{name}");
                unknown.push(full.clone());
                linker.func_new(module, name, ty, move |_, _, _| bail!("there is no `{full}`"))?;
            }
        }
    }
    Ok((linker, unknown))
}

/// Functions that write a text if it fits, and answer with its length.
macro_rules! texts {
    ($linker:ident, $($name:literal => $text:expr,)*) => {
        $($linker.func_wrap(MODULE, $name, |mut caller: Caller<'_>, to: u32, limit: u32| -> Result<u32> {
            let text: Result<Vec<u8>> = $text(caller.data_mut());
            let text = text?;
            fit(&mut caller, to, limit, &text)?;
            Ok(text.len() as u32)
        })?;)*
    };
}

const DEFINED: [&str; 19] = [
    "enable_features",
    "get_config",
    "log",
    "log_enabled",
    "get_method",
    "set_method",
    "get_uri",
    "set_uri",
    "get_protocol_version",
    "get_source_addr",
    "get_header_names",
    "get_header_values",
    "set_header_value",
    "add_header_value",
    "remove_header",
    "read_body",
    "write_body",
    "get_status_code",
    "set_status_code",
];

fn define(linker: &mut Linker<Host>) -> Result<()> {
    texts! { linker,
        "get_config" => |host: &mut Host| Ok(host.base.about.config.clone().into()),
        "get_method" => |host: &mut Host| Ok(host.exchange()?.request().method().as_str().into()),
        "get_uri" => |host: &mut Host| Ok(host.exchange()?.request().target().as_str().into()),
        "get_protocol_version" => |host: &mut Host| {
            Ok(format!("{:?}", host.exchange()?.request().version()).into())
        },
        "get_source_addr" => |host: &mut Host| {
            let exchange = host.exchange()?;
            let address = SocketAddr::new(exchange.client(), exchange.connection().peer.port());
            Ok(address.to_string().into())
        },
    }
    linker.func_wrap(MODULE, "enable_features", |mut caller: Caller<'_>, features: u32| {
        let host = caller.data_mut();
        host.features |= features & FEATURES;
        host.features
    })?;
    linker.func_wrap(MODULE, "log", log)?;
    linker
        .func_wrap(MODULE, "log_enabled", |level: i32| u32::from(level_of(level).is_some_and(is_logged)))?;
    linker.func_wrap(MODULE, "set_method", set_method)?;
    linker.func_wrap(MODULE, "set_uri", set_uri)?;
    linker.func_wrap_async(
        MODULE,
        "get_header_names",
        |mut caller: Caller<'_>, (kind, to, limit): (u32, u32, u32)| {
            Box::new(async move { header_names(&mut caller, kind, to, limit).await })
        },
    )?;
    linker.func_wrap_async(
        MODULE,
        "get_header_values",
        |mut caller: Caller<'_>, (kind, name, size, to, limit): (u32, u32, u32, u32, u32)| {
            Box::new(async move { header_values(&mut caller, kind, (name, size), to, limit).await })
        },
    )?;
    linker.func_wrap_async(
        MODULE,
        "set_header_value",
        |mut caller: Caller<'_>, (kind, name, size, value, length): (u32, u32, u32, u32, u32)| {
            Box::new(async move {
                change(&mut caller, kind, (name, size), Change::Set, Some((value, length))).await
            })
        },
    )?;
    linker.func_wrap_async(
        MODULE,
        "add_header_value",
        |mut caller: Caller<'_>, (kind, name, size, value, length): (u32, u32, u32, u32, u32)| {
            Box::new(async move {
                change(&mut caller, kind, (name, size), Change::Add, Some((value, length))).await
            })
        },
    )?;
    linker.func_wrap_async(
        MODULE,
        "remove_header",
        |mut caller: Caller<'_>, (kind, name, size): (u32, u32, u32)| {
            Box::new(async move { change(&mut caller, kind, (name, size), Change::Remove, None).await })
        },
    )?;
    linker.func_wrap_async(
        MODULE,
        "read_body",
        |mut caller: Caller<'_>, (kind, to, limit): (u32, u32, u32)| {
            Box::new(async move { read_body(&mut caller, kind, to, limit).await })
        },
    )?;
    linker.func_wrap(MODULE, "write_body", write_body)?;
    linker.func_wrap(MODULE, "get_status_code", get_status_code)?;
    linker.func_wrap(MODULE, "set_status_code", set_status_code)?;
    Ok(())
}

/// Writes bytes if there is room for them; the guest sees by their length whether there was.
fn fit(caller: &mut Caller<'_>, to: u32, limit: u32, bytes: &[u8]) -> Result<()> {
    if !bytes.is_empty() && bytes.len() <= limit as usize {
        write(caller, to, bytes)?;
    }
    Ok(())
}

fn level_of(level: i32) -> Option<Level> {
    match level {
        -1 => Some(Level::DEBUG),
        0 => Some(Level::INFO),
        1 => Some(Level::WARN),
        2 => Some(Level::ERROR),
        _ => None,
    }
}

fn is_logged(level: Level) -> bool {
    use tracing::enabled;
    match level {
        Level::DEBUG => enabled!(Level::DEBUG),
        Level::INFO => enabled!(Level::INFO),
        Level::WARN => enabled!(Level::WARN),
        _ => enabled!(Level::ERROR),
    }
}

fn log(mut caller: Caller<'_>, level: i32, message: u32, size: u32) -> Result<()> {
    let (memory, host) = parts(&mut caller)?;
    // What can't be logged is ignored.
    if let Some(level) = level_of(level) {
        host.log(level, slice(memory, message, size)?);
    }
    Ok(())
}

fn set_method(mut caller: Caller<'_>, method: u32, size: u32) -> Result<()> {
    let (memory, host) = parts(&mut caller)?;
    let method = Method::from_bytes(slice(memory, method, size)?)?;
    let mut request = unsent(host)?.request_mut();
    request.set_method(method).map_err(Error::msg)
}

fn set_uri(mut caller: Caller<'_>, uri: u32, size: u32) -> Result<()> {
    let (memory, host) = parts(&mut caller)?;
    let uri = str::from_utf8(slice(memory, uri, size)?)?;
    let (path, query) = uri.split_once('?').map_or((uri, None), |(path, query)| (path, Some(query)));
    let mut request = unsent(host)?.request_mut();
    let path = if path.is_empty() { "/" } else { path };
    request.set_path(path).and_then(|()| request.set_query(query)).map_err(Error::msg)
}

/// The exchange, whose request has not been sent yet.
fn unsent(host: &mut Host) -> Result<&mut portcullis_plugin::Exchange> {
    ensure!(host.stage != Stage::Response, "the request has gone on and can't be changed any more");
    host.exchange()
}

/// Waits until what follows a message's head is here, which may be in a later hook.
async fn arrival(caller: &mut Caller<'_>, way: Way) -> Result<()> {
    let host = caller.data_mut();
    if !host.has_arrived(way)? {
        host.suspend(way);
        let cell = host.cell.clone();
        let exchange = poll_fn(|context| cell.poll_back(context)).await;
        host.resume(exchange);
    }
    Ok(())
}

/// The headers of a kind that a guest may read now.
async fn headers<'a>(caller: &'a mut Caller<'_>, kind: u32) -> Result<&'a HeaderMap> {
    static NONE: std::sync::LazyLock<HeaderMap> = std::sync::LazyLock::new(HeaderMap::new);
    let kind = HeaderKind::of(kind).ok_or_else(|| Error::msg("there is no such kind of headers"))?;
    if let HeaderKind::Trailers(way) = kind {
        // Without the feature there are none; nor are there of an answer that the guest has yet to give.
        let host = caller.data();
        if !host.has_trailers() || way == Way::Response && host.stage == Stage::Request {
            return Ok(&NONE);
        }
        if way == Way::Response || host.stage == Stage::Request {
            arrival(caller, way).await?;
        }
    }
    let host = caller.data_mut();
    let stage = host.stage;
    Ok(match kind {
        HeaderKind::Head(Way::Request) => host.exchange()?.request().headers(),
        HeaderKind::Head(Way::Response) if stage == Stage::Response => {
            host.exchange()?.response().map_or(&NONE, |response| response.headers())
        }
        HeaderKind::Head(Way::Response) => &host.draft.headers,
        HeaderKind::Trailers(Way::Request) => host.exchange()?.request_trailers().unwrap_or(&NONE),
        HeaderKind::Trailers(Way::Response) => host.exchange()?.response_trailers().unwrap_or(&NONE),
    })
}

async fn header_names(caller: &mut Caller<'_>, kind: u32, to: u32, limit: u32) -> Result<u64> {
    let headers = headers(caller, kind).await?;
    let (count, names) = write_values(headers.keys().map(|name| name.as_str().as_bytes()));
    fit(caller, to, limit, &names)?;
    Ok(pair(count, names.len()))
}

async fn header_values(
    caller: &mut Caller<'_>,
    kind: u32,
    name: (u32, u32),
    to: u32,
    limit: u32,
) -> Result<u64> {
    let name = header_name(caller, name)?;
    let values = headers(caller, kind).await?.get_all(name);
    let (count, values) = write_values(values.into_iter().map(HeaderValue::as_bytes));
    fit(caller, to, limit, &values)?;
    Ok(pair(count, values.len()))
}

fn header_name(caller: &mut Caller<'_>, (name, size): (u32, u32)) -> Result<HeaderName> {
    let (memory, _) = parts(caller)?;
    Ok(HeaderName::from_bytes(slice(memory, name, size)?)?)
}

/// What is done to a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    Set,
    Add,
    Remove,
}

async fn change(
    caller: &mut Caller<'_>,
    kind: u32,
    name: (u32, u32),
    change: Change,
    value: Option<(u32, u32)>,
) -> Result<()> {
    let kind = HeaderKind::of(kind).ok_or_else(|| Error::msg("there is no such kind of headers"))?;
    let name = header_name(caller, name)?;
    let (memory, _) = parts(caller)?;
    let (at, size) = value.unwrap_or_default();
    let value = slice(memory, at, size)?.to_vec();
    let (name, value) = header(name.as_str(), value).map_err(Error::msg)?;
    let host = caller.data_mut();
    match kind {
        HeaderKind::Head(Way::Request) => {
            apply(&mut unsent(host)?.request_mut().headers, change, name, value)
        }
        HeaderKind::Head(Way::Response) if host.stage == Stage::Response => {
            let response = host.exchange()?.response_mut();
            let mut response = response.ok_or_else(|| Error::msg("there is no response"))?;
            apply(&mut response.headers, change, name, value);
        }
        HeaderKind::Head(Way::Response) => match change {
            Change::Set => host.draft.set(name, value)?,
            Change::Add => host.draft.add(name, value)?,
            Change::Remove => host.draft.remove(&name),
        },
        HeaderKind::Trailers(way) => {
            ensure!(host.has_trailers(), "trailers can be changed with the feature `trailers` only");
            let is_own = way == Way::Response && host.stage == Stage::Request;
            ensure!(!is_own, "a guest's own answer has no trailers");
            ensure!(way == Way::Response || host.stage == Stage::Request, "the request has gone on");
            arrival(caller, way).await?;
            change_trailer(caller.data_mut(), way, change, name, value)?;
        }
    }
    Ok(())
}

fn apply(headers: &mut portcullis_plugin::HeadMut<'_>, change: Change, name: HeaderName, value: HeaderValue) {
    match change {
        // There is one host, however often a guest adds one.
        Change::Add if name != http::header::HOST => headers.append(name, value),
        Change::Set | Change::Add => headers.set(name, value),
        Change::Remove => headers.remove(&name),
    }
}

fn change_trailer(
    host: &mut Host,
    way: Way,
    change: Change,
    name: HeaderName,
    value: HeaderValue,
) -> Result<()> {
    let exchange = host.exchange()?;
    let now = match way {
        Way::Request => exchange.request_trailers(),
        Way::Response => exchange.response_trailers(),
    };
    let mut trailers = now.cloned().unwrap_or_default();
    match change {
        Change::Set => drop(trailers.insert(name, value)),
        Change::Add => drop(trailers.append(name, value)),
        Change::Remove => drop(trailers.remove(name)),
    }
    ensure!(trailers.len() <= MAX_TRAILERS, "more than {MAX_TRAILERS} trailers");
    let set = match way {
        Way::Request => exchange.set_request_trailers(trailers),
        Way::Response => exchange.set_response_trailers(trailers),
    };
    // A message without a body has nothing that trailers could follow.
    set.map_err(|error| Error::msg(error.message().to_owned()))
}

async fn read_body(caller: &mut Caller<'_>, kind: u32, to: u32, limit: u32) -> Result<u64> {
    let way = body_kind(kind).ok_or_else(|| Error::msg("there is no such kind of body"))?;
    ensure!(limit > 0, "a body is read into no room at all");
    arrival(caller, way).await?;
    let (piece, ended) = caller.data_mut().read(way, limit as usize)?;
    write(caller, to, &piece)?;
    Ok(pair(ended.into(), piece.len()))
}

fn write_body(mut caller: Caller<'_>, kind: u32, body: u32, size: u32) -> Result<()> {
    let way = body_kind(kind).ok_or_else(|| Error::msg("there is no such kind of body"))?;
    let (memory, host) = parts(&mut caller)?;
    host.write(way, slice(memory, body, size)?)
}

fn get_status_code(mut caller: Caller<'_>) -> Result<u32> {
    let host = caller.data_mut();
    let status = match host.stage {
        Stage::Response => host.exchange()?.response().map(portcullis_plugin::Response::status),
        _ => Some(host.draft.status),
    };
    Ok(status.unwrap_or(StatusCode::OK).as_u16().into())
}

fn set_status_code(mut caller: Caller<'_>, status: u32) -> Result<()> {
    let status = u16::try_from(status).map_err(|_| "not a status".to_owned());
    let status = status.and_then(|status| final_status(status, 200)).map_err(Error::msg)?;
    let host = caller.data_mut();
    if host.stage != Stage::Response {
        host.draft.status = status;
        return Ok(());
    }
    let response = host.exchange()?.response_mut();
    response.ok_or_else(|| Error::msg("there is no response"))?.set_status(status);
    Ok(())
}
