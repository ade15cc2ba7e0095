//! What the host functions of one instance work on.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, StatusCode};
use portcullis_plugin::{Content, Exchange, Reply};
use tracing::Level;
use wasmtime::{Memory, Result, bail, ensure};

use super::abi::{BUFFER_RESPONSE, TRAILERS};
use crate::Way;
use crate::bindings::host::{Host as _, Level as Known};
use crate::host::{About, Breach, LOG_LINE};
use crate::memory::CoreHost;
use crate::wasi::Line;

/// Headers that a guest may give an answer of its own.
const MAX_HEADERS: usize = 256;

/// Why a guest's own answer was given, if it is a refusal.
const LOCAL_RESPONSE: &str = "wasm.local_response";

pub(super) struct Host {
    /// Budgets and log, and the exchange while a call runs.
    pub(super) base: crate::host::Host,
    memory: Option<Memory>,
    line: Line,
    /// Where the exchange comes from, and where it is when a call waits or has ended.
    pub(super) cell: Arc<Cell>,
    pub(super) stage: Stage,
    pub(super) features: u32,
    pub(super) draft: Draft,
    bodies: [Body; 2],
    body_limit: usize,
}

/// Which of its functions the guest is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    Start,
    Request,
    Response,
}

/// What a guest says of the response before there is one: its own answer, or headers for the one that comes.
#[derive(Default)]
pub(super) struct Draft {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    /// Names whose values are to be the only ones.
    set: Vec<HeaderName>,
}

/// How far a guest has read a body, and what it has written in its place.
#[derive(Default)]
struct Body {
    read: usize,
    written: Option<BytesMut>,
}

/// Where an exchange is between the calls that have it.
#[derive(Default)]
pub(super) struct Cell(Mutex<Inside>);

#[derive(Default)]
struct Inside {
    exchange: Option<Exchange>,
    /// The body that a call waits for.
    waits_for: Option<Way>,
}

impl Cell {
    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands the exchange to the call, which goes on if it waited.
    pub(super) fn give(&self, exchange: Exchange) {
        *self.inside() = Inside { exchange: Some(exchange), waits_for: None };
    }

    /// Takes the exchange back from a call that waits or has ended.
    pub(super) fn take(&self) -> Option<Exchange> {
        self.inside().exchange.take()
    }

    pub(super) fn waits_for(&self) -> Option<Way> {
        self.inside().waits_for
    }

    fn wait(&self, way: Way, exchange: Option<Exchange>) {
        *self.inside() = Inside { exchange, waits_for: Some(way) };
    }

    /// The exchange, when it has come back with the body.
    pub(super) fn poll_back(&self, _: &mut Context<'_>) -> Poll<Option<Exchange>> {
        let mut inside = self.inside();
        if inside.waits_for.is_some() { Poll::Pending } else { Poll::Ready(inside.exchange.take()) }
    }
}

impl Host {
    pub(super) fn new(about: Arc<About>, cell: Arc<Cell>, body_limit: usize) -> Self {
        Host {
            base: crate::host::Host::new(about),
            memory: None,
            line: Line::default(),
            cell,
            stage: Stage::Start,
            features: 0,
            draft: Draft::default(),
            bodies: Default::default(),
            body_limit,
        }
    }

    /// Begins an exchange, with the features that the guest has enabled at its start.
    pub(super) fn begin_exchange(&mut self, features: u32) {
        (self.stage, self.features) = (Stage::Request, features);
        self.draft = Draft::default();
        self.bodies = Default::default();
    }

    pub(super) fn begin_response(&mut self) {
        self.stage = Stage::Response;
        self.bodies[Way::Response as usize] = Body::default();
        let draft = std::mem::take(&mut self.draft);
        if let Ok(exchange) = self.exchange() {
            draft.apply(exchange);
        }
    }

    pub(super) fn exchange(&mut self) -> Result<&mut Exchange> {
        self.base.exchange.as_mut().ok_or_else(|| wasmtime::Error::msg("there is no request at the start"))
    }

    /// What the guest has written in place of a body.
    pub(super) fn take_written(&mut self, way: Way) -> Option<Bytes> {
        self.bodies[way as usize].written.take().map(BytesMut::freeze)
    }

    /// The guest's own answer.
    pub(super) fn take_reply(&mut self) -> Reply {
        let Draft { status, headers, .. } = std::mem::take(&mut self.draft);
        let is_refusal = status.is_client_error() || status.is_server_error();
        let reason = is_refusal.then(|| LOCAL_RESPONSE.into());
        let body = self.take_written(Way::Response).unwrap_or_default();
        Reply { status, reason, headers, content: Content::Bytes(body) }
    }

    /// Whether what the guest is to get of a body is here.
    pub(super) fn has_arrived(&mut self, way: Way) -> Result<bool> {
        let (stage, features) = (self.stage, self.features);
        let exchange = self.exchange()?;
        Ok(match (way, stage) {
            (Way::Request, Stage::Request) => {
                !exchange.has_request_body() || exchange.request_body().is_some()
            }
            (Way::Request, _) if exchange.has_request_body() && exchange.request_body().is_none() => {
                bail!("the request's body has gone on and can't be read any more")
            }
            (Way::Response, Stage::Response) if features & BUFFER_RESPONSE == 0 => {
                bail!("what follows the response's head is to be had with the feature `buffer_response` only")
            }
            (Way::Response, Stage::Response) => {
                !exchange.has_response_body() || exchange.response_body().is_some()
            }
            _ => true,
        })
    }

    /// Puts the exchange to where it waits for a body.
    pub(super) fn suspend(&mut self, way: Way) {
        self.cell.wait(way, self.base.exchange.take());
    }

    pub(super) fn resume(&mut self, exchange: Option<Exchange>) {
        self.base.exchange = exchange;
        self.base.go_on();
    }

    /// The next piece of a body, at most so long, and whether nothing follows it.
    pub(super) fn read(&mut self, way: Way, limit: usize) -> Result<(Bytes, bool)> {
        let stage = self.stage;
        let exchange = self.exchange()?;
        let body = match way {
            Way::Request => exchange.request_body().cloned(),
            Way::Response if stage == Stage::Response => exchange.response_body().cloned(),
            // Its own answer is what it wrote itself.
            Way::Response => None,
        };
        let body = body.unwrap_or_default();
        let read = &mut self.bodies[way as usize].read;
        let rest = body.len().saturating_sub(*read);
        let piece = body.slice(body.len() - rest..body.len() - rest + rest.min(limit));
        *read += piece.len();
        let ended = piece.len() == rest;
        Ok((piece, ended))
    }

    /// Writes on a body in place of the one that is there.
    pub(super) fn write(&mut self, way: Way, piece: &[u8]) -> Result<()> {
        let limit = self.body_limit;
        match (way, self.stage) {
            (_, Stage::Start) => bail!("there is no request at the start"),
            (Way::Request, Stage::Response) => bail!("the request has gone on and can't be changed any more"),
            (Way::Response, Stage::Response) => {
                let has = self.features & BUFFER_RESPONSE != 0;
                ensure!(has, "a response's body can be written with the feature `buffer_response` only");
            }
            _ => {}
        }
        let written = self.bodies[way as usize].written.get_or_insert_default();
        if written.len().saturating_add(piece.len()) > limit {
            self.base.breach = Some(Breach::Body);
            bail!("body limit");
        }
        written.extend_from_slice(piece);
        Ok(())
    }

    /// Whether trailers are there for the guest.
    pub(super) fn has_trailers(&self) -> bool {
        self.features & TRAILERS != 0 && self.stage != Stage::Start
    }
}

impl Draft {
    pub(super) fn set(&mut self, name: HeaderName, value: http::HeaderValue) -> Result<()> {
        self.check_room()?;
        if !self.set.contains(&name) {
            self.set.push(name.clone());
        }
        self.headers.insert(name, value);
        Ok(())
    }

    pub(super) fn add(&mut self, name: HeaderName, value: http::HeaderValue) -> Result<()> {
        self.check_room()?;
        self.headers.append(name, value);
        Ok(())
    }

    pub(super) fn remove(&mut self, name: &HeaderName) {
        self.headers.remove(name);
    }

    fn check_room(&self) -> Result<()> {
        ensure!(self.headers.len() < MAX_HEADERS, "more than {MAX_HEADERS} headers of a response");
        Ok(())
    }

    /// Gives these headers to the response that has come.
    fn apply(self, exchange: &mut Exchange) {
        let Some(mut response) = exchange.response_mut() else { return };
        for name in &self.set {
            response.headers.remove(name);
        }
        for (name, value) in &self.headers {
            response.headers.append(name.clone(), value.clone());
        }
    }
}

/// However a call ends, its exchange is in the cell then.
impl Drop for Host {
    fn drop(&mut self) {
        if let Some(exchange) = self.base.exchange.take() {
            self.cell.give(exchange);
        }
    }
}

impl CoreHost for Host {
    fn memory(&mut self) -> &mut Option<Memory> {
        &mut self.memory
    }

    fn line(&mut self) -> &mut Line {
        &mut self.line
    }

    fn log(&mut self, level: Level, message: &[u8]) {
        let level = match level {
            Level::ERROR => Known::Error,
            Level::WARN => Known::Warn,
            Level::INFO => Known::Info,
            _ => Known::Debug,
        };
        // What is cut off here would be cut off anyway, after a look at all of it.
        let message = message.get(..LOG_LINE).unwrap_or(message);
        // It does not fail.
        let _ = self.base.log(level, String::from_utf8_lossy(message).into_owned());
    }
}
