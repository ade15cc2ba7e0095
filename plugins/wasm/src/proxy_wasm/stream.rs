//! Bodies that stream past a guest, chunk by chunk. What it does not let go on is held back for it.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use portcullis_plugin::{BodyFilter, Decision, Exchange, Filtered, PluginError, Reply};

use super::abi::Way;
use super::seat::Machine;
use super::vm::Phase;
use super::{Place, context, decided, deliver, too_large};

/// One body of an exchange.
pub(super) struct Stream {
    machine: Arc<Machine>,
    place: Arc<Place>,
    way: Way,
    /// The exchange as it was when the body began: it is with somebody else now.
    exchange: Exchange,
    held: Bytes,
    /// The guest has been told of trailers, which come after the body's end.
    told_trailers: bool,
}

impl Stream {
    pub(super) fn new(machine: Arc<Machine>, place: Arc<Place>, way: Way, exchange: Exchange) -> Self {
        Stream { machine, place, way, exchange, held: Bytes::new(), told_trailers: false }
    }

    /// Asks the guest; what may go on now.
    fn ask(&mut self, phase: Phase, trailers: &mut HeaderMap) -> Result<Filtered, PluginError> {
        if self.place.lost.load(std::sync::atomic::Ordering::Relaxed) {
            return Ok(Filtered::Pass(std::mem::take(&mut self.held)));
        }
        let (way, held) = (self.way, self.held.clone());
        let (exchange, place) = (&mut self.exchange, &self.place);
        let (body, goes_on, decision) = self.machine.enter(place, |vm, mark| {
            vm.put_body(way, held);
            if matches!(phase, Phase::Trailers(_)) {
                vm.host().trailers = Some((way, std::mem::take(trailers)));
            }
            let asked = vm.with(exchange, |vm| {
                let (id, _) = context(vm, mark, place)?;
                deliver(vm, id)?;
                Ok((id, vm.ask(id, phase)?))
            });
            if let Some((_, told)) = vm.host().trailers.take() {
                *trailers = told;
            }
            let body = vm.take_body();
            let (id, goes_on) = asked?;
            Ok((body, goes_on, decided(vm, id)))
        })?;
        self.held = body.map(|body| body.bytes).unwrap_or_default();
        Ok(match decision {
            Some(Decision::Respond(reply)) => Filtered::Refuse(reply),
            Some(_) => {
                Filtered::Refuse(Box::new(Reply::deny(http::StatusCode::FORBIDDEN, "wasm.stream_closed")))
            }
            None if goes_on => Filtered::Pass(std::mem::take(&mut self.held)),
            None => Filtered::Pass(Bytes::new()),
        })
    }
}

impl BodyFilter for Stream {
    fn chunk(&mut self, chunk: Bytes) -> Result<Filtered, PluginError> {
        if self.held.len() + chunk.len() > self.machine.about().body_limit && !self.held.is_empty() {
            return Ok(Filtered::Refuse(Box::new(too_large(self.way))));
        }
        let held_before = !self.held.is_empty();
        self.held = if !held_before {
            chunk
        } else {
            let mut both = BytesMut::with_capacity(self.held.len() + chunk.len());
            both.extend_from_slice(&self.held);
            both.extend_from_slice(&chunk);
            both.freeze()
        };
        match self.ask(Phase::Body(self.way, false), &mut HeaderMap::new()) {
            // What was held back is gone with the guest, and a body with a gap is none.
            Err(error) if held_before => {
                let reason = error.kind().reason();
                tracing::warn!(
                    failure = reason,
                    error = error.message(),
                    "the module failed with a part of a body"
                );
                let status = http::StatusCode::INTERNAL_SERVER_ERROR;
                Ok(Filtered::Refuse(Box::new(Reply::deny(status, reason))))
            }
            asked => asked,
        }
    }

    fn trailers(&mut self, trailers: &mut HeaderMap) -> Result<(), PluginError> {
        self.told_trailers = true;
        match self.ask(Phase::Trailers(self.way), trailers)? {
            Filtered::Pass(bytes) => {
                self.held = bytes;
                Ok(())
            }
            Filtered::Refuse(_) => Err(PluginError::failed("the module answers after the body of a message")),
        }
    }

    fn end(&mut self) -> Result<Filtered, PluginError> {
        if self.told_trailers {
            return Ok(Filtered::Pass(std::mem::take(&mut self.held)));
        }
        let filtered = self.ask(Phase::Body(self.way, true), &mut HeaderMap::new())?;
        if matches!(&filtered, Filtered::Pass(_)) && !self.held.is_empty() {
            return Err(PluginError::failed(
                "the module pauses at the end of a body that streams; set `proxy_wasm.whole_bodies`",
            ));
        }
        Ok(filtered)
    }
}
