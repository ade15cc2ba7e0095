//! What a guest can reach: the exchange lent to it, its configuration, a bounded log. What else it may be granted is
//! in `capabilities.rs` and `wasi2.rs`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use portcullis_plugin::{Capabilities, Exchange, HeadMut, Request, RequestMut, thread_time};
use wasmtime::{Error, ResourceLimiter, Result, UpdateDeadline, bail};

use crate::bindings::exchange::Message;
use crate::bindings::{exchange, host, types};
use crate::engine::{Engines, MAX_TABLE_ELEMENTS, TICK, WATCH};
use crate::wasi2::Wasi;

/// Lines that a guest may log per call of a hook, and their length in bytes.
pub(crate) const LOG_LINES: u32 = 16;
pub(crate) const LOG_LINE: usize = 1024;

/// JSON and header values that the host takes: what parses within a fraction of a tick, since the
/// clock counts one tick per interruption and host functions are not interrupted.
const MAX_JSON: usize = 64 << 10;
const MAX_HEADER_VALUE: usize = 64 << 10;

/// A guest that is interrupted so soon was only looked at in an unlucky moment, and goes on.
const GRACE: Duration = Duration::from_micros(250);

/// What one instance's host functions work on.
pub(crate) struct Host {
    pub(crate) about: Arc<About>,
    /// Present from lending to restoring, that is: while a hook runs.
    pub(crate) exchange: Option<Exchange>,
    /// What was used up, if a budget was.
    pub(crate) breach: Option<Breach>,
    /// The last error that the guest logged in this call: what it says before it panics.
    pub(crate) last_words: Option<String>,
    /// Ticks that this call may take.
    pub(crate) budget: u32,
    begun: Instant,
    /// Where the thread's own clock stood when a call that holds it began.
    held_since: Duration,
    pace: Pace,
    ticks: u32,
    /// Whether the guest waited since the last look.
    rested: bool,
    pub(crate) memory: usize,
    lines: u32,
    /// HTTP calls of this call.
    pub(crate) calls: u32,
    /// Made for guests that ask for WASI, when they do.
    pub(crate) wasi: Option<Box<Wasi>>,
}

/// What is the same for all instances of a plugin.
pub(crate) struct About {
    pub(crate) name: Arc<str>,
    /// JSON text.
    pub(crate) config: String,
    /// Bytes of linear memory per instance.
    pub(crate) memory: usize,
    /// Bytes that the guest may hand over in one call.
    pub(crate) transfer: usize,
    pub(crate) capabilities: Capabilities,
    /// Held, since without its ticker nothing interrupts a guest.
    pub(crate) engines: Arc<Engines>,
}

/// A budget that a guest used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Breach {
    Cpu,
    Memory,
    Body,
}

/// Whether a guest that is interrupted yields to the worker's other exchanges.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pace {
    Yield,
    /// It goes on at once, and can't wait for anything.
    Hold,
}

impl Host {
    pub(crate) fn new(about: Arc<About>) -> Self {
        Host {
            about,
            exchange: None,
            breach: None,
            last_words: None,
            pace: Pace::Yield,
            budget: 0,
            begun: Instant::now(),
            held_since: Duration::ZERO,
            ticks: 0,
            rested: false,
            memory: 0,
            lines: 0,
            calls: 0,
            wasi: None,
        }
    }

    /// Begins a call that may take `budget` ticks of CPU.
    pub(crate) fn begin(&mut self, budget: u32, pace: Pace) {
        (self.budget, self.pace, self.ticks, self.lines) = (budget, pace, 0, 0);
        (self.breach, self.last_words, self.rested, self.calls) = (None, None, false, 0);
        self.begun = Instant::now();
        if pace == Pace::Hold {
            self.held_since = thread_time();
        }
        self.about.engines.ticker.stir();
        if budget < WATCH {
            self.about.engines.ticker.hurry();
        }
    }

    /// The call goes on after a wait, which took none of the guest's time.
    pub(crate) fn go_on(&mut self) {
        self.begun = Instant::now();
        self.about.engines.ticker.stir();
    }

    /// The guest is interrupted: another tick, or the end.
    pub(crate) fn tick(&mut self) -> Result<UpdateDeadline> {
        let ticker = &self.about.engines.ticker;
        ticker.stir();
        let rested = std::mem::take(&mut self.rested);
        let stretch = if self.ticks > 0 && !rested { TICK } else { self.begun.elapsed() };
        if stretch < GRACE {
            return Ok(UpdateDeadline::Continue(1));
        }
        // Between two looks nobody runs for longer: the rest the machine took for others.
        self.ticks += (stretch.as_micros().div_ceil(TICK.as_micros()) as u32).min(ticker.pace());
        ticker.hurry();
        if self.ticks > self.budget && !self.was_kept_waiting() {
            self.breach = Some(Breach::Cpu);
            bail!("CPU budget");
        }
        Ok(match self.pace {
            // Who takes more than a moment shares the worker: others, whose requests need several turns, have it half the time.
            Pace::Yield if self.ticks > 1 => UpdateDeadline::YieldCustom(1, Box::pin(ticker.rest())),
            Pace::Yield => UpdateDeadline::Yield(1),
            Pace::Hold => UpdateDeadline::Continue(1),
        })
    }

    /// Whether this call can wait for something.
    pub(crate) fn can_wait(&self) -> bool {
        self.pace == Pace::Yield
    }

    /// The guest waited since `start`, which took none of its CPU.
    pub(crate) fn waited(&mut self, start: Instant) {
        match self.ticks {
            0 => self.begun += start.elapsed(),
            _ => self.begun = Instant::now(),
        }
        self.rested = true;
        self.about.engines.ticker.stir();
    }

    /// CPU time that the call has taken: ticks, or less than one.
    pub(crate) fn cpu(&self) -> Duration {
        match self.ticks {
            0 => self.begun.elapsed().min(TICK),
            ticks => TICK * ticks,
        }
    }

    /// Whether the machine, not the guest, used up the ticks: they pass also while a busy machine runs
    /// other threads. A guest that yields is counted by the pieces it runs in, which are short.
    fn was_kept_waiting(&self) -> bool {
        let budget = Duration::from_millis(u64::from(self.budget));
        self.pace == Pace::Hold && thread_time().saturating_sub(self.held_since) < budget
    }

    fn exchange(&mut self) -> Result<&mut Exchange> {
        self.exchange.as_mut().ok_or_else(|| Error::msg("there is no exchange in this hook"))
    }

    fn request(&mut self, of: Message) -> Result<Option<&Request>> {
        let exchange = self.exchange()?;
        Ok(match of {
            Message::Request => Some(exchange.request()),
            Message::Outgoing => exchange.outgoing(),
            Message::Response => None,
        })
    }

    fn read(&mut self, of: Message, read: impl FnOnce(&Request) -> Option<&str>) -> Result<Option<String>> {
        Ok(self.request(of)?.and_then(read).map(str::to_owned))
    }

    fn header_map(&mut self, of: Message) -> Result<Option<&HeaderMap>> {
        Ok(match of {
            Message::Response => self.exchange()?.response().map(|response| response.headers()),
            _ => self.request(of)?.map(|request| request.headers()),
        })
    }

    fn change(
        &mut self,
        of: Message,
        change: impl FnOnce(RequestMut<'_>) -> Result<(), String>,
    ) -> Result<Result<(), String>> {
        let exchange = self.exchange()?;
        Ok(match of {
            Message::Request => change(exchange.request_mut()),
            Message::Outgoing => exchange.outgoing_mut().map_or_else(|| Err(absent(of)), change),
            Message::Response => Err("that is a request's, not the response's".into()),
        })
    }

    fn change_headers(
        &mut self,
        of: Message,
        change: impl FnOnce(HeadMut<'_>) -> Result<(), String>,
    ) -> Result<Result<(), String>> {
        match of {
            Message::Response => {
                let response = self.exchange()?.response_mut();
                Ok(response.map_or_else(|| Err(absent(of)), |response| change(response.headers)))
            }
            _ => self.change(of, |request| change(request.headers)),
        }
    }
}

fn absent(message: Message) -> String {
    match message {
        Message::Request => "there is no request here",
        Message::Outgoing => "there is no outgoing request outside on_upstream",
        Message::Response => "there is no response before on_response",
    }
    .into()
}

fn header_name(name: &str) -> Result<HeaderName, String> {
    HeaderName::from_bytes(name.as_bytes()).map_err(|_| format!("`{}` is not a header name", clip(name, 64)))
}

/// A header as a guest gives it.
pub(crate) fn header(name: &str, value: Vec<u8>) -> Result<(HeaderName, HeaderValue), String> {
    let name = header_name(name)?;
    if value.len() > MAX_HEADER_VALUE {
        return Err(format!("the value of `{name}` is longer than {MAX_HEADER_VALUE} bytes"));
    }
    let value = HeaderValue::from_maybe_shared(Bytes::from(value))
        .map_err(|_| format!("the value of `{name}` has characters that no header may have"))?;
    Ok((name, value))
}

fn json<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, String> {
    if text.len() > MAX_JSON {
        return Err(format!("more than {MAX_JSON} bytes of JSON"));
    }
    serde_json::from_str(text).map_err(|error| error.to_string())
}

fn clip(text: &str, bytes: usize) -> &str {
    text.get(..text.floor_char_boundary(bytes)).unwrap_or_default()
}

/// What a guest says as it is logged: bounded, and with nothing in it that begins another line or
/// speaks to a terminal, since it may be a client's text.
pub(crate) fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len().min(LOG_LINE));
    for char in clip(text, LOG_LINE).chars() {
        match char {
            // Separators of lines and paragraphs, and what turns the direction of writing.
            '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => line.extend(char.escape_unicode()),
            char if char.is_control() => line.extend(char.escape_default()),
            char => line.push(char),
        }
    }
    line
}

/// The client's connection as the WIT has it.
pub(crate) fn connection(connection: &portcullis_plugin::Connection) -> types::Connection {
    types::Connection {
        listener: connection.listener.to_string(),
        peer: connection.peer.to_string(),
        local: connection.local.to_string(),
        tls: connection.tls.as_ref().map(|tls| types::TlsSession {
            version: tls.version.into(),
            server_name: tls.server_name.as_deref().map(Into::into),
            client_chain: tls.client_chain.iter().map(|certificate| certificate.to_vec()).collect(),
        }),
    }
}

impl types::Host for Host {}

impl exchange::Host for Host {
    fn id(&mut self) -> Result<String> {
        Ok(self.exchange()?.id().to_string())
    }

    fn set_id(&mut self, id: String) -> Result<Result<(), String>> {
        Ok(self.exchange()?.set_id(&id).map_err(Into::into))
    }

    fn client(&mut self) -> Result<String> {
        Ok(self.exchange()?.client().to_string())
    }

    fn scheme(&mut self) -> Result<String> {
        Ok(self.exchange()?.scheme().into())
    }

    fn connection(&mut self) -> Result<types::Connection> {
        Ok(connection(self.exchange()?.connection()))
    }

    fn route(&mut self) -> Result<Option<String>> {
        Ok(self.exchange()?.route().map(Into::into))
    }

    fn capture(&mut self, name: String) -> Result<Option<String>> {
        Ok(self.exchange()?.capture(&name).map(Into::into))
    }

    fn original_target(&mut self) -> Result<String> {
        Ok(self.exchange()?.original_target().to_string())
    }

    fn method(&mut self, of: Message) -> Result<Option<String>> {
        self.read(of, |request| Some(request.method().as_str()))
    }

    fn set_method(&mut self, of: Message, method: String) -> Result<Result<(), String>> {
        self.change(of, |mut request| {
            let method = Method::from_bytes(method.as_bytes());
            request.set_method(method.map_err(|_| "not a method")?).map_err(Into::into)
        })
    }

    fn path(&mut self, of: Message) -> Result<Option<String>> {
        self.read(of, |request| Some(request.path()))
    }

    fn set_path(&mut self, of: Message, path: String) -> Result<Result<(), String>> {
        self.change(of, |mut request| request.set_path(&path).map_err(Into::into))
    }

    fn query(&mut self, of: Message) -> Result<Option<String>> {
        self.read(of, Request::query)
    }

    fn set_query(&mut self, of: Message, query: Option<String>) -> Result<Result<(), String>> {
        self.change(of, |mut request| request.set_query(query.as_deref()).map_err(Into::into))
    }

    fn query_param(&mut self, of: Message, name: String) -> Result<Option<String>> {
        let request = self.request(of)?;
        Ok(request.and_then(|request| request.query_param(&name)).map(|value| value.into_owned()))
    }

    fn host(&mut self, of: Message) -> Result<Option<String>> {
        self.read(of, |request| Some(request.host()))
    }

    fn cookie(&mut self, of: Message, name: String) -> Result<Option<String>> {
        self.read(of, |request| request.cookie(&name))
    }

    fn status(&mut self) -> Result<Option<u16>> {
        Ok(self.exchange()?.response().map(|response| response.status().as_u16()))
    }

    fn set_status(&mut self, status: u16) -> Result<Result<(), String>> {
        let Some(mut response) = self.exchange()?.response_mut() else {
            return Ok(Err(absent(Message::Response)));
        };
        Ok(final_status(status, 200).map(|status| response.set_status(status)))
    }

    fn header(&mut self, of: Message, name: String) -> Result<Option<Vec<u8>>> {
        let Ok(name) = header_name(&name) else { return Ok(None) };
        let value = self.header_map(of)?.and_then(|headers| headers.get(name));
        Ok(value.map(|value| value.as_bytes().to_vec()))
    }

    fn headers(&mut self, of: Message) -> Result<Vec<u8>> {
        Ok(self.header_map(of)?.map(pack).unwrap_or_default())
    }

    fn set_header(&mut self, of: Message, name: String, value: Vec<u8>) -> Result<Result<(), String>> {
        self.change_headers(of, |mut headers| {
            let (name, value) = header(&name, value)?;
            headers.set(name, value);
            Ok(())
        })
    }

    fn append_header(&mut self, of: Message, name: String, value: Vec<u8>) -> Result<Result<(), String>> {
        self.change_headers(of, |mut headers| {
            let (name, value) = header(&name, value)?;
            headers.append(name, value);
            Ok(())
        })
    }

    fn remove_header(&mut self, of: Message, name: String) -> Result<Result<(), String>> {
        self.change_headers(of, |mut headers| {
            headers.remove(&header_name(&name)?);
            Ok(())
        })
    }

    fn body(&mut self, of: Message) -> Result<Option<Vec<u8>>> {
        let exchange = self.exchange()?;
        let body = match of {
            Message::Request | Message::Outgoing => exchange.request_body(),
            Message::Response => exchange.response_body(),
        };
        Ok(body.map(|body| body.to_vec()))
    }

    fn set_body(&mut self, of: Message, body: Vec<u8>) -> Result<Result<(), String>> {
        let exchange = self.exchange()?;
        let set = match of {
            Message::Request => exchange.set_request_body(body.into()),
            Message::Response => exchange.set_response_body(body.into()),
            Message::Outgoing => {
                return Ok(
                    Err("the body of an attempt is the request's, replaced in on_request_body".into()),
                );
            }
        };
        Ok(set.map_err(|error| error.message().into()))
    }

    fn principal(&mut self) -> Result<Option<String>> {
        Ok(self.exchange()?.principal().map(serde_json::to_string).transpose()?)
    }

    fn set_principal(&mut self, principal: String) -> Result<Result<(), String>> {
        let exchange = self.exchange()?;
        Ok(json(&principal).map(|principal| exchange.set_principal(principal)))
    }

    fn fact(&mut self, name: String) -> Result<Option<String>> {
        Ok(self.exchange()?.fact(&name).map(ToString::to_string))
    }

    fn set_fact(&mut self, name: String, value: String) -> Result<Result<(), String>> {
        let exchange = self.exchange()?;
        Ok(json(&value).map(|value| exchange.set_fact(&name, value)))
    }

    fn rests_on(&mut self, rule: String) -> Result<()> {
        self.exchange()?.rests_on(&rule);
        Ok(())
    }

    fn attempt(&mut self) -> Result<Option<types::Attempt>> {
        Ok(self.exchange()?.attempt().map(|attempt| types::Attempt {
            number: attempt.number,
            upstream: attempt.upstream.to_string(),
            endpoint: attempt.endpoint.to_string(),
        }))
    }

    fn decider(&mut self) -> Result<Option<types::Decider>> {
        Ok(self.exchange()?.decider().map(|decider| types::Decider {
            by: decider.by.to_string(),
            reason: decider.reason.as_ref().map(ToString::to_string),
        }))
    }

    fn outcome(&mut self) -> Result<Option<types::Outcome>> {
        Ok(self.exchange()?.outcome().map(|outcome| types::Outcome {
            end: outcome.end.as_str().into(),
            status: outcome.status.map(|status| status.as_u16()),
            request_bytes: outcome.request_bytes,
            response_bytes: outcome.response_bytes,
            duration: outcome.duration.as_micros() as u64,
            upstream_duration: outcome.upstream_duration.map(|duration| duration.as_micros() as u64),
        }))
    }

    fn grpc_status(&mut self) -> Result<Option<String>> {
        Ok(self.exchange()?.outcome().and_then(|outcome| outcome.grpc_status).map(str::to_owned))
    }
}

impl host::Host for Host {
    fn config(&mut self) -> Result<String> {
        Ok(self.about.config.clone())
    }

    fn log(&mut self, level: host::Level, message: String) -> Result<()> {
        self.say(level, &message);
        Ok(())
    }
}

impl Host {
    /// Logs what the guest says, within the bounds of this call.
    pub(crate) fn say(&mut self, level: host::Level, message: &str) {
        let message = one_line(message);
        if level == host::Level::Error {
            self.last_words = Some(message.clone());
        }
        self.lines = self.lines.saturating_add(1);
        if self.lines > LOG_LINES {
            return;
        }
        let (plugin, more) = (&*self.about.name, self.lines == LOG_LINES);
        let id = self.exchange.as_ref().map(|exchange| tracing::field::display(exchange.id()));
        match level {
            host::Level::Debug => tracing::debug!(plugin, request_id = id, more_dropped = more, "{message}"),
            host::Level::Info => tracing::info!(plugin, request_id = id, more_dropped = more, "{message}"),
            host::Level::Warn => tracing::warn!(plugin, request_id = id, more_dropped = more, "{message}"),
            host::Level::Error => tracing::error!(plugin, request_id = id, more_dropped = more, "{message}"),
        }
    }
}

/// A status that a guest gives, from `least` to 599.
pub(crate) fn final_status(status: u16, least: u16) -> Result<StatusCode, String> {
    let status = StatusCode::from_u16(status).ok().filter(|known| (least..600).contains(&known.as_u16()));
    status.ok_or_else(|| format!("a status here is {least} to 599"))
}

/// All headers in one piece; the WIT says how.
fn pack(headers: &HeaderMap) -> Vec<u8> {
    let length: usize = headers.iter().map(|(name, value)| 6 + name.as_str().len() + value.len()).sum();
    let mut packed = Vec::with_capacity(length);
    for (name, value) in headers {
        // Neither is ever that long: names end at 64 KiB, and a head is bounded as a whole.
        let (Ok(name_length), Ok(value_length)) =
            (u16::try_from(name.as_str().len()), u32::try_from(value.len()))
        else {
            continue;
        };
        packed.extend_from_slice(&name_length.to_le_bytes());
        packed.extend_from_slice(name.as_str().as_bytes());
        packed.extend_from_slice(&value_length.to_le_bytes());
        packed.extend_from_slice(value.as_bytes());
    }
    packed
}

impl ResourceLimiter for Host {
    fn memory_growing(&mut self, current: usize, desired: usize, _: Option<usize>) -> Result<bool> {
        let memory = self.memory.saturating_add(desired.saturating_sub(current));
        if memory > self.about.memory {
            self.breach = Some(Breach::Memory);
            bail!("memory budget");
        }
        self.memory = memory;
        Ok(true)
    }

    fn table_growing(&mut self, _: usize, desired: usize, _: Option<usize>) -> Result<bool> {
        Ok(desired <= MAX_TABLE_ELEMENTS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_packed_as_the_wit_says() {
        let headers = HeaderMap::from_iter([(http::header::HOST, HeaderValue::from_static("a.test"))]);
        assert_eq!(pack(&headers), b"\x04\0host\x06\0\0\0a.test");
    }

    #[test]
    fn what_is_no_header_is_refused_with_its_name() {
        assert_eq!(header("x y", vec![]).unwrap_err(), "`x y` is not a header name");
        assert!(header("x", b"a\r\nb".to_vec()).unwrap_err().contains("`x`"));
        assert!(header("x", vec![b'a'; MAX_HEADER_VALUE + 1]).unwrap_err().contains("longer"));
    }

    #[test]
    fn statuses_and_json_are_bounded() {
        assert!(final_status(101, 200).is_err() && final_status(600, 200).is_err());
        assert_eq!(final_status(403, 400), Ok(StatusCode::FORBIDDEN));
        assert!(json::<serde_json::Value>(&format!("\"{}\"", "x".repeat(MAX_JSON))).is_err());
    }

    fn host() -> Host {
        let about = About {
            name: "guest".into(),
            config: "{}".into(),
            memory: 0,
            transfer: 0,
            capabilities: Capabilities::default(),
            engines: Engines::with(1, 1).unwrap(),
        };
        Host::new(Arc::new(about))
    }

    #[test]
    fn a_stretch_between_two_looks_counts_by_its_ticks() {
        let mut host = host();
        let mut ticks = |ran: u64| {
            host.begin(5, Pace::Yield);
            host.begun -= Duration::from_micros(ran);
            let update = host.tick().unwrap();
            (host.ticks, matches!(update, UpdateDeadline::YieldCustom(..)))
        };
        // The pace is that of looks, until the first guest takes long.
        assert_eq!(ticks(0), (0, false));
        assert_eq!(ticks(900), (1, false));
        assert_eq!(ticks(3500), (4, true));
    }

    #[test]
    fn a_guest_that_goes_on_beyond_its_ticks_is_stopped() {
        let mut host = host();
        host.begin(1, Pace::Yield);
        host.begun -= TICK / 2;
        assert!(host.tick().is_ok() && host.tick().is_err());
        assert_eq!(host.breach, Some(Breach::Cpu));
    }

    #[test]
    fn what_a_guest_logs_stays_one_line() {
        let mut host = host();
        let written = crate::tests::logged(|| {
            let forged =
                "hi\n2026-01-01T00:00:00Z  INFO portcullis: all is well\r\u{1b}[2J\u{202e}".to_owned();
            host::Host::log(&mut host, host::Level::Info, forged).unwrap();
        });
        assert_eq!(written.lines().count(), 1, "{written}");
        assert!(written.contains(r"hi\n2026-01-01T00:00:00Z  INFO"), "{written}");
        assert!(written.contains(r"well\r\u{1b}[2J\u{202e}"), "{written}");
        assert!(one_line(&format!("{}ä", "x".repeat(LOG_LINE - 1))).ends_with('x'));
    }
}
