//! The host functions, by the names of all versions of the ABI.

use std::time::{SystemTime, UNIX_EPOCH};

use bytes::{Bytes, BytesMut};
use http::header::CONTENT_TYPE;
use http::{HeaderValue, StatusCode};
use portcullis_plugin::{Content, Reply};
use tracing::Level;
use wasmtime::{Engine, ExternType, FuncType, Linker, Module, Val};

use super::abi::{Map, Status, Way, headers, read_pairs};
use super::calls::{Kind, Outgoing, add_message, cluster, grpc_request, http_request, limits};
use super::host::Host;
use super::maps::{self, Change};
use super::memory::{Caller, Fault, give, parts, slice, write, write_number};
use super::properties;
use crate::instance::reason;
use crate::memory::CoreHost;
use crate::wasi;

/// Why a guest's own answer was given, unless it says.
const LOCAL_RESPONSE: &str = "wasm.local_response";

type Answer = Result<(), Fault>;

/// What links a module, whatever it imports, and the names of what it imports that nobody knows.
pub(super) fn linker(engine: &Engine, module: &Module) -> wasmtime::Result<(Linker<Host>, Vec<String>)> {
    let mut linker = Linker::new(engine);
    define(&mut linker)?;
    wasi::define(&mut linker)?;
    linker.allow_shadowing(true);
    let mut unknown = Vec::new();
    for import in module.imports() {
        let (module, name) = (import.module(), import.name());
        let ExternType::Func(ty) = import.ty() else { continue };
        match (module, name) {
            ("env", "proxy_continue_request") => {
                stub(&mut linker, module, name, ty, |host| resume(host, Way::Request))?
            }
            ("env", "proxy_continue_response") => {
                stub(&mut linker, module, name, ty, |host| resume(host, Way::Response))?
            }
            // The route is chosen once.
            ("env", "proxy_clear_route_cache") => stub(&mut linker, module, name, ty, |_| Ok(()))?,
            _ if DEFINED.contains(&name) && module == "env" => {}
            (wasi::MODULE | wasi::UNSTABLE, _) => wasi::refuse(&mut linker, module, name, ty)?,
            _ => {
                unknown.push(format!("{module}.{name}"));
                stub(&mut linker, module, name, ty, |_| Err(Status::Unimplemented))?;
            }
        }
    }
    Ok((linker, unknown))
}

/// A function that needs no parameters, with whatever type the guest imports it: of 0.1.0's, some SDKs expect an
/// answer and others none.
fn stub(
    linker: &mut Linker<Host>,
    module: &str,
    name: &str,
    ty: FuncType,
    act: impl Fn(&mut Host) -> Result<(), Status> + Send + Sync + 'static,
) -> wasmtime::Result<()> {
    let zeros: Vec<_> = ty.results().map(|ty| Val::default_for_ty(&ty).unwrap_or(Val::I32(0))).collect();
    linker.func_new(module, name, ty, move |mut caller, _, results| {
        let status = act(caller.data_mut()).err().unwrap_or(Status::Ok);
        for (result, zero) in results.iter_mut().zip(&zeros) {
            *result = if matches!(zero, Val::I32(_)) { Val::I32(status as i32) } else { *zero };
        }
        Ok(())
    })?;
    Ok(())
}

fn answer(answer: Answer) -> wasmtime::Result<u32> {
    match answer {
        Ok(()) => Ok(Status::Ok as u32),
        Err(Fault::Status(status)) => Ok(status as u32),
        Err(Fault::Trap(error)) => Err(error),
    }
}

macro_rules! host_functions {
    ($($name:literal => $function:ident($($parameter:ident),*),)*) => {
        /// The functions whose types are known.
        const DEFINED: &[&str] = &[
            $($name,)*
            "proxy_record_metric", "proxy_increment_metric", "emscripten_notify_memory_growth",
        ];

        fn define(linker: &mut Linker<Host>) -> wasmtime::Result<()> {
            $(linker.func_wrap("env", $name, |mut caller: Caller<'_> $(, $parameter: u32)*| {
                answer($function(&mut caller $(, $parameter)*))
            })?;)*
            linker.func_wrap("env", "proxy_record_metric", |mut caller: Caller<'_>, metric: u32, value: u64| {
                answer(caller.data_mut().about.metrics.record(metric, value).map_err(Fault::Status))
            })?;
            linker.func_wrap("env", "proxy_increment_metric", |mut caller: Caller<'_>, metric: u32, delta: i64| {
                answer(caller.data_mut().about.metrics.increment(metric, delta).map_err(Fault::Status))
            })?;
            linker.func_wrap("env", "emscripten_notify_memory_growth", |_: u32| ())?;
            Ok(())
        }
    };
}

host_functions! {
    "proxy_log" => log(level, data, size),
    "proxy_get_log_level" => get_log_level(to),
    "proxy_get_current_time_nanoseconds" => get_time(to),
    "proxy_set_tick_period_milliseconds" => set_tick_period(millis),
    "proxy_get_configuration" => get_configuration(data_to, size_to),
    "proxy_get_buffer_bytes" => get_buffer(buffer, start, max, data_to, size_to),
    "proxy_get_buffer_status" => get_buffer_status(buffer, size_to, flags_to),
    "proxy_set_buffer_bytes" => set_buffer(buffer, start, length, data, size),
    "proxy_get_header_map_size" => get_map_size(map, size_to),
    "proxy_get_header_map_pairs" => get_map(map, data_to, size_to),
    "proxy_set_header_map_pairs" => set_map(map, data, size),
    "proxy_get_header_map_value" => get_header(map, name, name_size, data_to, size_to),
    "proxy_add_header_map_value" => add_header(map, name, name_size, value, value_size),
    "proxy_replace_header_map_value" => replace_header(map, name, name_size, value, value_size),
    "proxy_remove_header_map_value" => remove_header(map, name, name_size),
    "proxy_continue_stream" => continue_stream(stream),
    "proxy_close_stream" => close_stream(stream),
    "proxy_get_status" => get_status(code_to, data_to, size_to),
    "proxy_send_local_response" =>
        send_local_response(status, details, details_size, body, body_size, headers, headers_size, grpc_status),
    "proxy_http_call" =>
        http_call(upstream, upstream_size, headers, headers_size, body, body_size, trailers, trailers_size, millis, call_to),
    "proxy_grpc_call" =>
        grpc_call(upstream, upstream_size, service, service_size, method, method_size, metadata, metadata_size, message, message_size, millis, call_to),
    "proxy_grpc_stream" =>
        grpc_stream(upstream, upstream_size, service, service_size, method, method_size, metadata, metadata_size, call_to),
    "proxy_grpc_send" => grpc_send(call, message, message_size, ended),
    "proxy_grpc_cancel" => grpc_cancel(call),
    "proxy_grpc_close" => grpc_close(call),
    "proxy_get_shared_data" => get_shared_data(key, key_size, data_to, size_to, cas_to),
    "proxy_set_shared_data" => set_shared_data(key, key_size, value, value_size, cas),
    "proxy_register_shared_queue" => register_queue(name, name_size, queue_to),
    "proxy_resolve_shared_queue" => resolve_queue(vm_id, vm_id_size, name, name_size, queue_to),
    "proxy_enqueue_shared_queue" => enqueue(queue, data, size),
    "proxy_dequeue_shared_queue" => dequeue(queue, data_to, size_to),
    "proxy_define_metric" => define_metric(kind, name, name_size, metric_to),
    "proxy_get_metric" => get_metric(metric, value_to),
    "proxy_get_property" => get_property(path, path_size, data_to, size_to),
    "proxy_set_property" => set_property(path, path_size, value, value_size),
    "proxy_call_foreign_function" => call_foreign_function(name, name_size, data, size, data_to, size_to),
    "proxy_done" => done(),
    "proxy_set_effective_context" => set_effective_context(id),
}

fn log(caller: &mut Caller<'_>, level: u32, data: u32, size: u32) -> Answer {
    let (memory, host) = parts(caller)?;
    let level = match level {
        0 => Level::TRACE,
        1 => Level::DEBUG,
        2 => Level::INFO,
        3 => Level::WARN,
        4 | 5 => Level::ERROR,
        _ => return Err(Status::BadArgument.into()),
    };
    host.log(level, slice(memory, data, size)?);
    Ok(())
}

fn get_log_level(caller: &mut Caller<'_>, to: u32) -> Answer {
    use tracing::enabled;
    let level = match () {
        () if enabled!(Level::TRACE) => 0,
        () if enabled!(Level::DEBUG) => 1,
        () if enabled!(Level::INFO) => 2,
        () if enabled!(Level::WARN) => 3,
        () => 4,
    };
    write_number(caller, to, level)
}

fn get_time(caller: &mut Caller<'_>, to: u32) -> Answer {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    write(caller, to, &(since.as_nanos() as u64).to_le_bytes())
}

fn set_tick_period(caller: &mut Caller<'_>, millis: u32) -> Answer {
    caller.data_mut().set_tick(millis);
    Ok(())
}

fn get_configuration(caller: &mut Caller<'_>, data_to: u32, size_to: u32) -> Answer {
    let host = caller.data();
    let text = if host.starts_vm { host.about.vm_config.clone() } else { host.about.config.clone() };
    give(caller, &text, data_to, size_to)
}

/// A buffer by its number.
fn buffer(host: &Host, number: u32) -> Result<Bytes, Status> {
    let of = |way| {
        let body = host.body.as_ref().filter(|body| body.way == way && host.effective == host.called);
        body.map(|body| body.bytes.clone()).ok_or(Status::NotFound)
    };
    match number {
        0 => of(Way::Request),
        1 => of(Way::Response),
        4 | 5 => host.answer.as_ref().map(|answer| answer.body.clone()).ok_or(Status::NotFound),
        6 => Ok(host.about.vm_config.clone()),
        7 => Ok(host.about.config.clone()),
        // Of TCP streams and of foreign functions there are none.
        2 | 3 | 8 => Err(Status::NotFound),
        _ => Err(Status::BadArgument),
    }
}

fn get_buffer(
    caller: &mut Caller<'_>,
    number: u32,
    start: u32,
    max: u32,
    data_to: u32,
    size_to: u32,
) -> Answer {
    let buffer = buffer(caller.data(), number)?;
    let start = start as usize;
    let end = start.saturating_add(max as usize).min(buffer.len());
    let bytes = buffer.get(start..end).ok_or(Status::BadArgument)?;
    give(caller, bytes, data_to, size_to)
}

fn get_buffer_status(caller: &mut Caller<'_>, number: u32, size_to: u32, flags_to: u32) -> Answer {
    let size = buffer(caller.data(), number)?.len() as u32;
    write_number(caller, size_to, size)?;
    write_number(caller, flags_to, 0)
}

/// Puts bytes in place of `length` bytes from `start` on.
fn set_buffer(caller: &mut Caller<'_>, number: u32, start: u32, length: u32, data: u32, size: u32) -> Answer {
    let (memory, host) = parts(caller)?;
    let value = slice(memory, data, size)?;
    if number > 1 {
        return Err(if number > 8 { Status::BadArgument } else { Status::NotFound }.into());
    }
    let before = buffer(host, number)?;
    let start = (start as usize).min(before.len());
    let end = start.saturating_add(length as usize).min(before.len());
    let (head, tail) = (before.get(..start).unwrap_or_default(), before.get(end..).unwrap_or_default());
    if head.len() + value.len() + tail.len() > host.about.body_limit {
        return Err(Status::InternalFailure.into());
    }
    let mut bytes = BytesMut::with_capacity(head.len() + value.len() + tail.len());
    [head, value, tail].into_iter().for_each(|part| bytes.extend_from_slice(part));
    if let Some(body) = &mut host.body {
        (body.bytes, body.changed) = (bytes.freeze(), true);
    }
    Ok(())
}

fn get_map_size(caller: &mut Caller<'_>, map: u32, size_to: u32) -> Answer {
    let size = maps::pairs(caller.data_mut(), Map::of(map)?).len() as u32;
    write_number(caller, size_to, size)
}

fn get_map(caller: &mut Caller<'_>, map: u32, data_to: u32, size_to: u32) -> Answer {
    let pairs = maps::pairs(caller.data_mut(), Map::of(map)?);
    give(caller, &pairs, data_to, size_to)
}

fn set_map(caller: &mut Caller<'_>, map: u32, data: u32, size: u32) -> Answer {
    let (memory, host) = parts(caller)?;
    let pairs = read_pairs(slice(memory, data, size)?).ok_or(Status::BadArgument)?;
    Ok(maps::replace(host, Map::of(map)?, &pairs)?)
}

fn get_header(
    caller: &mut Caller<'_>,
    map: u32,
    name: u32,
    name_size: u32,
    data_to: u32,
    size_to: u32,
) -> Answer {
    let (memory, host) = parts(caller)?;
    let value = maps::value(host, Map::of(map)?, &slice(memory, name, name_size)?.to_ascii_lowercase())?;
    give(caller, &value, data_to, size_to)
}

fn add_header(
    caller: &mut Caller<'_>,
    map: u32,
    name: u32,
    name_size: u32,
    value: u32,
    value_size: u32,
) -> Answer {
    change_header(caller, map, (name, name_size), (value, value_size), Change::Add)
}

fn replace_header(
    caller: &mut Caller<'_>,
    map: u32,
    name: u32,
    name_size: u32,
    value: u32,
    value_size: u32,
) -> Answer {
    change_header(caller, map, (name, name_size), (value, value_size), Change::Replace)
}

fn change_header(
    caller: &mut Caller<'_>,
    map: u32,
    name: (u32, u32),
    value: (u32, u32),
    change: Change,
) -> Answer {
    let (memory, host) = parts(caller)?;
    let (name, value) = (slice(memory, name.0, name.1)?, slice(memory, value.0, value.1)?);
    Ok(maps::set(host, Map::of(map)?, name, value, change)?)
}

fn remove_header(caller: &mut Caller<'_>, map: u32, name: u32, name_size: u32) -> Answer {
    let (memory, host) = parts(caller)?;
    Ok(maps::remove(host, Map::of(map)?, slice(memory, name, name_size)?)?)
}

fn resume(host: &mut Host, way: Way) -> Result<(), Status> {
    host.stream()?.resumed[way as usize] = true;
    host.wake();
    Ok(())
}

fn continue_stream(caller: &mut Caller<'_>, stream: u32) -> Answer {
    let way = match stream {
        0 => Way::Request,
        1 => Way::Response,
        2 | 3 => return Err(Status::Unimplemented.into()),
        _ => return Err(Status::BadArgument.into()),
    };
    Ok(resume(caller.data_mut(), way)?)
}

fn close_stream(caller: &mut Caller<'_>, stream: u32) -> Answer {
    if stream > 3 {
        return Err(Status::BadArgument.into());
    }
    let host = caller.data_mut();
    host.stream()?.closed = true;
    host.wake();
    Ok(())
}

fn get_status(caller: &mut Caller<'_>, code_to: u32, data_to: u32, size_to: u32) -> Answer {
    let told = caller.data().answer.as_ref().map(|answer| (answer.status, answer.message.clone()));
    let (status, message) = told.unwrap_or_default();
    write_number(caller, code_to, status)?;
    give(caller, message.as_bytes(), data_to, size_to)
}

#[expect(clippy::too_many_arguments, reason = "the ABI's")]
fn send_local_response(
    caller: &mut Caller<'_>,
    status: u32,
    details: u32,
    details_size: u32,
    body: u32,
    body_size: u32,
    pairs: u32,
    pairs_size: u32,
    // The gateway tells clients of gRPC itself, by the status.
    _grpc_status: u32,
) -> Answer {
    let (memory, host) = parts(caller)?;
    let known = u16::try_from(status).ok().filter(|status| (200..600).contains(status));
    let status = known.and_then(|status| StatusCode::from_u16(status).ok()).ok_or(Status::BadArgument)?;
    let details = String::from_utf8_lossy(slice(memory, details, details_size)?).into_owned();
    let pairs = read_pairs(slice(memory, pairs, pairs_size)?).ok_or(Status::BadArgument)?;
    let body = Bytes::copy_from_slice(slice(memory, body, body_size)?);
    let mut headers = headers(&pairs)?;
    // As in Envoy.
    if !body.is_empty() && !headers.contains_key(CONTENT_TYPE) {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    }
    let reason = Some(reason(details).map_or(LOCAL_RESPONSE.into(), Into::into));
    let reply = Reply { status, reason, headers, content: Content::Bytes(body) };
    host.stream()?.reply = Some(Box::new(reply));
    host.wake();
    Ok(())
}

#[expect(clippy::too_many_arguments, reason = "the ABI's")]
fn http_call(
    caller: &mut Caller<'_>,
    upstream: u32,
    upstream_size: u32,
    pairs: u32,
    pairs_size: u32,
    body: u32,
    body_size: u32,
    // Calls of plugins have none.
    _trailers: u32,
    _trailers_size: u32,
    millis: u32,
    call_to: u32,
) -> Answer {
    write_number(caller, call_to, 0)?;
    let (memory, host) = parts(caller)?;
    let upstream = host.about.upstream(slice(memory, upstream, upstream_size)?).ok_or(Status::BadArgument)?;
    let pairs = read_pairs(slice(memory, pairs, pairs_size)?).ok_or(Status::BadArgument)?;
    let request = http_request(&pairs, slice(memory, body, body_size)?)?;
    let limits = limits(millis, host.about.body_limit);
    let call = host.new_call()?;
    host.outbox.push(Outgoing { call, kind: Kind::Http, upstream, request, limits });
    write_number(caller, call_to, call)
}

/// A gRPC call that has been begun, with its number.
fn begin_grpc(
    caller: &mut Caller<'_>,
    kind: Kind,
    upstream: (u32, u32),
    service: (u32, u32),
    method: (u32, u32),
    metadata: (u32, u32),
    millis: u32,
) -> Result<Outgoing, Fault> {
    let (memory, host) = parts(caller)?;
    let name = cluster(slice(memory, upstream.0, upstream.1)?);
    let upstream = host.about.upstream(name).ok_or(Status::ParseFailure)?;
    let metadata = read_pairs(slice(memory, metadata.0, metadata.1)?).ok_or(Status::BadArgument)?;
    let (service, method) = (slice(memory, service.0, service.1)?, slice(memory, method.0, method.1)?);
    let request = grpc_request(service, method, &metadata)?;
    let limits = limits(millis, host.about.body_limit);
    Ok(Outgoing { call: host.new_call()?, kind, upstream, request, limits })
}

#[expect(clippy::too_many_arguments, reason = "the ABI's")]
fn grpc_call(
    caller: &mut Caller<'_>,
    upstream: u32,
    upstream_size: u32,
    service: u32,
    service_size: u32,
    method: u32,
    method_size: u32,
    metadata: u32,
    metadata_size: u32,
    message: u32,
    message_size: u32,
    millis: u32,
    call_to: u32,
) -> Answer {
    write_number(caller, call_to, 0)?;
    let message = slice(parts(caller)?.0, message, message_size)?.to_vec();
    let (upstream, service) = ((upstream, upstream_size), (service, service_size));
    let (method, metadata) = ((method, method_size), (metadata, metadata_size));
    let mut outgoing = begin_grpc(caller, Kind::Grpc, upstream, service, method, metadata, millis)?;
    add_message(&mut outgoing.request, &message);
    let call = outgoing.call;
    caller.data_mut().outbox.push(outgoing);
    write_number(caller, call_to, call)
}

#[expect(clippy::too_many_arguments, reason = "the ABI's")]
fn grpc_stream(
    caller: &mut Caller<'_>,
    upstream: u32,
    upstream_size: u32,
    service: u32,
    service_size: u32,
    method: u32,
    method_size: u32,
    metadata: u32,
    metadata_size: u32,
    call_to: u32,
) -> Answer {
    write_number(caller, call_to, 0)?;
    let (upstream, service) = ((upstream, upstream_size), (service, service_size));
    let (method, metadata) = ((method, method_size), (metadata, metadata_size));
    let outgoing = begin_grpc(caller, Kind::GrpcStream, upstream, service, method, metadata, 0)?;
    let call = outgoing.call;
    caller.data_mut().streams.insert(call, outgoing);
    write_number(caller, call_to, call)
}

/// Adds a message to a stream, which is sent when it has ended.
fn grpc_send(caller: &mut Caller<'_>, call: u32, message: u32, message_size: u32, ended: u32) -> Answer {
    let (memory, host) = parts(caller)?;
    let message = slice(memory, message, message_size)?;
    let stream = host.streams.get_mut(&call).ok_or(Status::NotFound)?;
    if stream.request.body().len() + message.len() > host.about.body_limit {
        return Err(Status::InternalFailure.into());
    }
    if !message.is_empty() {
        add_message(&mut stream.request, message);
    }
    if ended != 0
        && let Some(stream) = host.streams.remove(&call)
    {
        host.outbox.push(stream);
    }
    Ok(())
}

fn grpc_cancel(caller: &mut Caller<'_>, call: u32) -> Answer {
    let host = caller.data_mut();
    host.outbox.retain(|outgoing| outgoing.call != call);
    if host.forget_call(call) { Ok(()) } else { Err(Status::NotFound.into()) }
}

/// Ends a stream that is still written to; whatever is on its way is given up.
fn grpc_close(caller: &mut Caller<'_>, call: u32) -> Answer {
    let host = caller.data_mut();
    match host.streams.remove(&call) {
        Some(stream) => host.outbox.push(stream),
        None if host.forget_call(call) => {}
        None => return Err(Status::NotFound.into()),
    }
    Ok(())
}

fn get_shared_data(
    caller: &mut Caller<'_>,
    key: u32,
    key_size: u32,
    data_to: u32,
    size_to: u32,
    cas_to: u32,
) -> Answer {
    let (memory, host) = parts(caller)?;
    let (value, cas) = host.about.shared().get(&host.about.vm_id, slice(memory, key, key_size)?)?;
    give(caller, &value, data_to, size_to)?;
    write_number(caller, cas_to, cas)
}

fn set_shared_data(
    caller: &mut Caller<'_>,
    key: u32,
    key_size: u32,
    value: u32,
    value_size: u32,
    cas: u32,
) -> Answer {
    let (memory, host) = parts(caller)?;
    let (key, value) = (slice(memory, key, key_size)?, slice(memory, value, value_size)?);
    Ok(host.about.shared().set(&host.about.vm_id, key, value, cas)?)
}

fn register_queue(caller: &mut Caller<'_>, name: u32, name_size: u32, queue_to: u32) -> Answer {
    let (memory, host) = parts(caller)?;
    let queue = host.about.shared().register(&host.about.vm_id, slice(memory, name, name_size)?)?;
    host.queues.push(queue);
    write_number(caller, queue_to, queue)
}

fn resolve_queue(
    caller: &mut Caller<'_>,
    vm_id: u32,
    vm_id_size: u32,
    name: u32,
    name_size: u32,
    queue_to: u32,
) -> Answer {
    let (memory, host) = parts(caller)?;
    let vm_id = str::from_utf8(slice(memory, vm_id, vm_id_size)?).map_err(|_| Status::NotFound)?;
    let queue = host.about.shared().resolve(vm_id, slice(memory, name, name_size)?)?;
    write_number(caller, queue_to, queue)
}

fn enqueue(caller: &mut Caller<'_>, queue: u32, data: u32, size: u32) -> Answer {
    let (memory, host) = parts(caller)?;
    Ok(host.about.shared().enqueue(queue, slice(memory, data, size)?)?)
}

fn dequeue(caller: &mut Caller<'_>, queue: u32, data_to: u32, size_to: u32) -> Answer {
    let item = caller.data().about.shared().dequeue(queue)?;
    give(caller, &item, data_to, size_to)
}

fn define_metric(caller: &mut Caller<'_>, kind: u32, name: u32, name_size: u32, metric_to: u32) -> Answer {
    let (memory, host) = parts(caller)?;
    let name = String::from_utf8_lossy(slice(memory, name, name_size)?);
    let metric = host.about.metrics.define(kind, &name)?;
    write_number(caller, metric_to, metric)
}

fn get_metric(caller: &mut Caller<'_>, metric: u32, value_to: u32) -> Answer {
    let value = caller.data().about.metrics.get(metric)?;
    write(caller, value_to, &value.to_le_bytes())
}

fn get_property(caller: &mut Caller<'_>, path: u32, path_size: u32, data_to: u32, size_to: u32) -> Answer {
    let (memory, host) = parts(caller)?;
    let value = properties::get(host, slice(memory, path, path_size)?)?;
    give(caller, &value, data_to, size_to)
}

fn set_property(caller: &mut Caller<'_>, path: u32, path_size: u32, value: u32, value_size: u32) -> Answer {
    let (memory, host) = parts(caller)?;
    Ok(host.set_property(slice(memory, path, path_size)?, slice(memory, value, value_size)?)?)
}

/// There are none.
fn call_foreign_function(
    caller: &mut Caller<'_>,
    name: u32,
    name_size: u32,
    data: u32,
    size: u32,
    _: u32,
    _: u32,
) -> Answer {
    let (memory, _) = parts(caller)?;
    slice(memory, name, name_size).and(slice(memory, data, size))?;
    Err(Status::NotFound.into())
}

fn done(caller: &mut Caller<'_>) -> Answer {
    let host = caller.data_mut();
    let id = host.effective;
    if !host.context()?.is_deferred || host.done.contains(&id) {
        return Err(Status::NotFound.into());
    }
    host.done.push(id);
    Ok(())
}

fn set_effective_context(caller: &mut Caller<'_>, id: u32) -> Answer {
    let host = caller.data_mut();
    if !host.contexts.contains_key(&id) {
        return Err(Status::BadArgument.into());
    }
    host.effective = id;
    Ok(())
}
