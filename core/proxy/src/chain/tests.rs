use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use http::header::{HeaderName, HeaderValue};
use portcullis_plugin::ExchangeBuilder;

use super::*;
use crate::metrics::Metrics;

/// Counts the current thread's allocations.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: passes everything on to the system's allocator.
#[expect(unsafe_code, reason = "an allocator is the only way to count allocations")]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // The thread may be past its locals' destruction.
        let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Looks at the request and stamps the response, without waiting.
struct Stamp;

impl Plugin for Stamp {
    fn needs(&self) -> Needs {
        Needs::hooks([HookName::OnRequest, HookName::OnResponse, HookName::OnLog])
    }

    fn on_request<'a>(&'a self, exchange: &'a mut Exchange) -> Hook<'a> {
        match exchange.request().host() {
            "refused.test" => Hook::from(Decision::Drop),
            _ => Hook::CONTINUE,
        }
    }

    fn on_response<'a>(&'a self, exchange: &'a mut Exchange) -> Hook<'a> {
        if let Some(mut response) = exchange.response_mut() {
            let value = HeaderValue::from_static("1");
            response.headers.set(HeaderName::from_static("x-stamp"), value);
        }
        Hook::CONTINUE
    }
}

fn chain(length: usize) -> Chain {
    let metrics = Metrics::new(1);
    let instance = || {
        Arc::new(Instance {
            name: "stamp".into(),
            kind: "stamp",
            version: "1".into(),
            plugin: Arc::new(Stamp),
            needs: Stamp.needs(),
            on_error: OnError::Deny,
            quarantine: None,
            budget: Used::default(),
            timeout: Duration::from_secs(1),
            in_shadow: false,
            metrics: metrics.plugin("stamp", "stamp"),
            serial: Instance::serial(),
        })
    };
    Chain::new((0..length).map(|_| instance()).collect())
}

fn poll_once<F: Future>(future: F) -> Option<F::Output> {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => Some(output),
        Poll::Pending => None,
    }
}

#[test]
fn a_chain_that_never_waits_allocates_nothing() {
    let chain = chain(6);
    let mut exchange = ExchangeBuilder::get("/").response(200, &[("x-stamp", "0")], "").build();
    // The first change makes room for more in the journal and the header map.
    poll_once(chain.backward(HookName::OnResponse, &mut exchange, 6, u16::MAX)).unwrap();
    exchange.core().changes.reserve(32);
    exchange.core().steps.clear();
    let before = ALLOCATIONS.get();
    let (flow, entered) = poll_once(chain.forward(HookName::OnRequest, &mut exchange)).unwrap();
    assert!(matches!(flow, Flow::Continue) && entered == 6);
    poll_once(chain.backward(HookName::OnResponse, &mut exchange, entered, u16::MAX)).unwrap();
    poll_once(chain.backward(HookName::OnLog, &mut exchange, entered, u16::MAX)).unwrap();
    assert_eq!(ALLOCATIONS.get() - before, 0);
    assert_eq!(exchange.core().steps.len(), 18);
}

#[test]
fn a_failure_is_recorded_in_a_few_words() {
    let mut exchange = ExchangeBuilder::get("/").build();
    let cursor = Cursor { plugin: 0, hook: HookName::OnRequest };
    let error = Err(PluginError::failed("é".repeat(MAX_ERROR)));
    record(exchange.core(), cursor, &error, Instant::now(), Duration::ZERO);
    assert_eq!(exchange.core().notes[0].error.as_deref(), Some(&*"é".repeat(MAX_ERROR / 2)));
}

#[test]
fn a_hook_that_nobody_wants_leaves_no_step() {
    let chain = chain(3);
    let mut exchange = ExchangeBuilder::get("/").build();
    poll_once(chain.forward(HookName::OnUpstream, &mut exchange)).unwrap();
    assert!(exchange.core().steps.is_empty() && !chain.wants(HookName::OnUpstream));
}
