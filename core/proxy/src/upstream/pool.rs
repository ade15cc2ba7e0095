//! Idle connections, per worker.
//!
//! The pool is the thread's own: a connection never changes workers, and taking one out costs no
//! lock. It is keyed by the endpoint's identity, so reloads that keep an endpoint keep its connections.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::task::Context;
use std::time::Duration;

use super::connection::Conn;

/// How often connections that were idle too long are closed.
const REAP_INTERVAL: Duration = Duration::from_secs(1);

thread_local! {
    #[expect(clippy::vec_box, reason = "a connection is large, and moves with every request")]
    static IDLE: RefCell<BTreeMap<u32, Vec<Box<Conn>>>> = RefCell::default();
}

/// The most recently used live connection to an endpoint.
pub(super) fn check_out(endpoint: u32, cx: &mut Context<'_>) -> Option<Box<Conn>> {
    // Connections are polled outside the borrow: polling may run code that uses the pool.
    while let Some(mut conn) = IDLE.with_borrow_mut(|idle| idle.get_mut(&endpoint)?.pop()) {
        if !conn.idle_too_long() && conn.is_usable(cx) {
            return Some(conn);
        }
    }
    None
}

/// Keeps a connection for the next request, or closes it if enough are kept.
pub(super) fn check_in(conn: Box<Conn>) {
    let surplus = IDLE.with_borrow_mut(|idle| {
        let kept = idle.entry(conn.endpoint()).or_default();
        if kept.len() >= conn.max_idle() {
            return Some(conn);
        }
        kept.push(conn);
        None
    });
    drop(surplus);
}

/// Closes connections that have been idle too long, once a second, for as long as the worker runs.
pub(crate) async fn reap_idle() {
    loop {
        tokio::time::sleep(REAP_INTERVAL).await;
        let mut expired = Vec::new();
        IDLE.with_borrow_mut(|idle| {
            for kept in idle.values_mut() {
                expired.extend(kept.extract_if(.., |conn| conn.idle_too_long()));
            }
            idle.retain(|_, kept| !kept.is_empty());
        });
        drop(expired);
    }
}

/// Closes the thread's idle connections when dropped: to be held while the runtime still lives.
pub(crate) struct ReapGuard;

impl Drop for ReapGuard {
    fn drop(&mut self) {
        drop(IDLE.take());
    }
}
