//! An exchange while it lives: accounted for from its beginning, logged at its end, whichever it is.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http::{Method, StatusCode};
use portcullis_plugin::{
    Decider, End, Exchange, HookName, Note, Outcome, Parts, Reason, Request, Response, Verdict,
};
use smallvec::SmallVec;

use crate::body::{FilterRefusal, Held, UploadFailure, UploadState};
use crate::chain::Chain;
use crate::client::{Client, Serving};
use crate::generation::{Listener, Route};
use crate::grpc::Code;
use crate::logs::Ended;
use crate::metrics::{GivenUp, RouteMetrics};
use crate::record;
use crate::reply::Fault;
use crate::timer::LazyTimer;
use crate::tunnel::Upgrade;
use crate::worker::{Worker, WorkerGeneration};

/// Where in a generation an exchange belongs: its listener, and its route once one is chosen.
pub(crate) struct Scope {
    pub(crate) generation: Rc<WorkerGeneration>,
    listener: usize,
    route: Option<usize>,
}

impl Scope {
    pub(crate) fn listener(&self) -> &Listener {
        &self.generation.listeners[self.listener]
    }

    pub(crate) fn route(&self) -> Option<&Route> {
        self.generation.routes.get(self.route?)
    }

    pub(crate) fn route_index(&self) -> Option<usize> {
        self.route
    }

    /// The route's chain; the listener's until a route is chosen.
    pub(crate) fn chain(&self) -> &Chain {
        let listener = self.listener();
        match self.route {
            Some(route) => &listener.route_chains[route],
            None => &listener.chain,
        }
    }

    /// Remembers an exchange that ended here.
    pub(crate) fn remember(&self, worker: &Worker, exchange: &mut Exchange, outcome: Outcome) {
        if let Some(samples) = &self.generation.records.samples {
            samples.write(exchange, &outcome);
        }
        let (names, listener) = (&self.generation.names, self.listener);
        let ended = record::Ended { exchange, outcome, chain: self.chain(), names, listener };
        worker.records.keep(worker.index, &self.generation.records, ended, || worker.lot());
    }
}

/// A time by which something has to be over, and what it is if it is not.
pub(crate) struct Deadline {
    clock: LazyTimer,
    fault: Fault,
}

impl Deadline {
    pub(crate) fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<Fault> {
        self.clock.poll_expired(cx).map(|()| self.fault.clone())
    }
}

/// A living exchange. Dropping it, at whatever point, is its end: it is counted, and queued for
/// `on_log`. Boxed, because it changes hands often.
pub(crate) struct Live {
    /// None only while it is dropped.
    exchange: Option<Exchange>,
    scope: Option<Scope>,
    serving: Serving,
    /// Plugins that were entered: those whose response hooks run.
    pub(crate) entered: u16,
    pub(crate) upload: Option<Arc<UploadState>>,
    /// What the client wants to speak from here on, and may as far as is known.
    pub(crate) upgrade: Option<Box<Upgrade>>,
    /// Shares of the body budget, kept for as long as the bodies are.
    pub(crate) held: SmallVec<[Held; 2]>,
    /// Request body bytes read, where no upload counts them.
    pub(crate) request_bytes: u64,
    pub(crate) upstream_duration: Option<std::time::Duration>,
    pub(crate) status: Option<StatusCode>,
    /// The client asked for a head alone; a plugin may have changed the method.
    pub(crate) is_head: bool,
    /// Exchanges that were under way at this worker when it began.
    others: u64,
    /// Whether the response is the gateway's own.
    pub(crate) is_reply: bool,
    /// How the call ended, if it is one of gRPC, as far as the client was told.
    pub(crate) outcome: Option<Code>,
    /// Until when its response has to have ended.
    pub(crate) deadline: Option<Box<Deadline>>,
    start: Instant,
    end: Option<End>,
    response_bytes: u64,
}

impl Live {
    pub(crate) fn new(
        serving: Serving,
        generation: Rc<WorkerGeneration>,
        listener: usize,
        request: Request,
    ) -> Box<Self> {
        let worker = &serving.client.worker;
        let others = worker.metrics.exchanges_open.increment();
        let is_head = *request.method() == Method::HEAD;
        let parts = Parts::new(worker.request_id(), serving.client.connection.clone(), request);
        let start = parts.began;
        Box::new(Live {
            exchange: Some(Exchange::new(parts)),
            scope: Some(Scope { generation, listener, route: None }),
            serving,
            entered: 0,
            upload: None,
            upgrade: None,
            held: SmallVec::new(),
            request_bytes: 0,
            upstream_duration: None,
            status: None,
            is_head,
            others,
            is_reply: false,
            outcome: None,
            deadline: None,
            start,
            end: None,
            response_bytes: 0,
        })
    }

    /// Whether the worker has as many others as it may have.
    pub(crate) fn is_one_too_many(&self) -> bool {
        self.others >= self.scope().generation.max_exchanges
    }

    pub(crate) fn client(&self) -> &Client {
        &self.serving.client
    }

    /// The client's connection, and which of its streams this is.
    pub(crate) fn stream(&self) -> (Rc<Client>, u64) {
        (self.serving.client.clone(), self.serving.stream())
    }

    /// The connection waits for the client to take what it was given, until this is said otherwise.
    pub(crate) fn waits_for_client(&self, waits: bool) {
        self.serving.waits_for_client(waits);
    }

    #[expect(clippy::expect_used, reason = "taken in drop only")]
    pub(crate) fn scope(&self) -> &Scope {
        self.scope.as_ref().expect("present until dropped")
    }

    #[expect(clippy::expect_used, reason = "taken in drop only")]
    pub(crate) fn exchange(&mut self) -> &mut Exchange {
        self.exchange.as_mut().expect("present until dropped")
    }

    #[expect(clippy::expect_used, reason = "taken in drop only")]
    pub(crate) fn request(&self) -> &Request {
        self.exchange.as_ref().expect("present until dropped").request()
    }

    /// The exchange with what it belongs to.
    #[expect(clippy::expect_used, reason = "taken in drop only")]
    pub(crate) fn split(&mut self) -> (&mut Exchange, &Scope) {
        (
            self.exchange.as_mut().expect("present until dropped"),
            self.scope.as_ref().expect("present until dropped"),
        )
    }

    pub(crate) fn parts(&mut self) -> &mut Parts {
        self.exchange().core()
    }

    /// The route is chosen.
    pub(crate) fn take_route(&mut self, route: usize) {
        if let Some(scope) = &mut self.scope {
            scope.route = Some(route);
        }
    }

    /// The core answers in place of the upstream.
    pub(crate) fn decided_by_core(&mut self, by: &'static str, reason: Option<&'static str>) {
        let decider = Decider { by: by.into(), hook: None, reason: reason.map(Reason::Borrowed) };
        self.parts().decider = Some(Box::new(decider));
    }

    /// A filter has refused the body that it was to pass.
    pub(crate) fn refused_by(&mut self, refusal: &FilterRefusal) {
        let FilterRefusal { instance, cursor, reply } = refusal;
        let (by, reason) = (instance.name.clone(), reply.reason.clone());
        let parts = self.parts();
        let step = parts.steps.iter().rposition(|step| step.cursor == *cursor);
        if let Some(step) = step.filter(|step| parts.steps[*step].verdict == Verdict::Filter) {
            parts.steps[step].verdict = Verdict::Respond;
            parts.notes.push(Note { step, reason: reason.clone(), ..Note::default() });
        }
        parts.decider = Some(Box::new(Decider { by, hook: Some(cursor.hook), reason }));
    }

    /// Body bytes went to the client's connection.
    pub(crate) fn sent(&mut self, bytes: u64) {
        self.response_bytes += bytes;
    }

    /// The exchange has so long until the end of its response; a longer one has this fault.
    pub(crate) fn end_after(&mut self, patience: Option<(Duration, Fault)>) {
        self.deadline = patience.map(|(patience, fault)| {
            let mut clock = LazyTimer::new();
            clock.start(patience);
            Box::new(Deadline { clock, fault })
        });
    }

    /// Tells how it ended; the first word counts.
    pub(crate) fn end(&mut self, end: End) {
        self.end.get_or_insert(end);
    }

    /// The core ends the exchange, or what is left of it.
    pub(crate) fn fail(&mut self, fault: &Fault) {
        let (_, _, reason) = fault.describe();
        let worker = &self.serving.client.worker;
        worker.count_refusal(reason);
        if *fault == Fault::BodyTimeout {
            worker.metrics.give_up(GivenUp::Body);
        }
        self.decided_by_core(fault.decider(), Some(reason));
    }

    /// What failed in the upload after the response had begun is known only here.
    fn late_upload_failure(&mut self) {
        let Some(failure) = self.upload.as_ref().and_then(|upload| upload.take_failure()) else { return };
        match failure {
            UploadFailure::Refused(refusal) => self.refused_by(&refusal),
            UploadFailure::Fault(Fault::ClientBody) => {}
            UploadFailure::Fault(fault) => self.fail(&fault),
        }
    }

    fn count(&self, metrics: &RouteMetrics) {
        let class = self.status.map_or(0, |status| usize::from(status.as_u16() / 100));
        if let Some(counter) = metrics.responses.get(class) {
            counter.increment();
        }
        metrics.duration.observe(self.start.elapsed());
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        // A hook that was cut off in a sandbox may have kept the exchange.
        let is_lost = self.exchange.as_ref().is_none_or(Exchange::is_hollow);
        if !is_lost {
            self.late_upload_failure();
        }
        let worker = self.serving.client.worker.clone();
        worker.metrics.exchanges_open.decrement();
        let (Some(mut exchange), Some(scope)) = (self.exchange.take(), self.scope.take()) else { return };
        match scope.route() {
            Some(route) => self.count(&route.metrics),
            None => self.count(&scope.generation.unrouted),
        }
        if is_lost {
            return;
        }
        let outcome = Outcome {
            end: self.end.unwrap_or(End::ClientGone),
            status: self.status,
            request_bytes: self
                .upload
                .as_ref()
                .map_or(self.request_bytes, |upload| upload.bytes.load(Relaxed)),
            response_bytes: self.response_bytes,
            duration: self.start.elapsed(),
            upstream_duration: self.upstream_duration,
            grpc_status: self.outcome.map(Code::name),
        };
        if !scope.chain().wants(HookName::OnLog) {
            return scope.remember(&worker, &mut exchange, outcome);
        }
        exchange.core().outcome = Some(Box::new(outcome));
        let (held, entered) = (std::mem::take(&mut self.held), self.entered);
        worker.clone().logs.push(Ended { worker, exchange, scope, entered, _held: held });
    }
}

impl Live {
    /// Puts the response's head where plugins see it.
    pub(crate) fn respond(&mut self, response: Response) {
        let parts = self.parts();
        parts.response = Some(response);
        parts.response_body = None;
        parts.has_response_body = false;
    }
}
