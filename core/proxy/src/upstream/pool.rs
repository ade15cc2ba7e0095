//! Idle connections, per worker.
//!
//! The pool is the thread's own: a connection never changes workers, and taking one out costs no
//! lock. It is keyed by the endpoint's identity, so reloads that keep an endpoint keep its connections.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::task::Context;
use std::time::Duration;

use super::connection::Conn;
use crate::proxy_protocol::Addresses;

/// How often connections that were idle too long, or are too old, are closed.
const REAP_INTERVAL: Duration = Duration::from_secs(1);

thread_local! {
    #[expect(clippy::vec_box, reason = "a connection is large, and moves with every request")]
    static IDLE: RefCell<BTreeMap<u32, Vec<Box<Conn>>>> = RefCell::default();
}

/// The most recently used live connection to an endpoint that requests of this client may go over.
pub(super) fn check_out(
    endpoint: u32,
    client: Option<&Addresses>,
    cx: &mut Context<'_>,
) -> Option<Box<Conn>> {
    let take = |idle: &mut BTreeMap<u32, Vec<Box<Conn>>>| {
        let kept = idle.get_mut(&endpoint)?;
        // The last one is, unless the endpoint is told whose connections they are.
        let at = kept.iter().rposition(|conn| conn.is_for(client))?;
        Some(kept.remove(at))
    };
    // Connections are polled outside the borrow: polling may run code that uses the pool.
    while let Some(mut conn) = IDLE.with_borrow_mut(take) {
        if !conn.is_expired() && conn.is_usable(cx) {
            return Some(conn);
        }
    }
    None
}

/// Keeps a connection for the next request. If enough are kept the oldest is closed, which may be one
/// whose client is gone.
pub(super) fn check_in(conn: Box<Conn>) {
    let surplus = IDLE.with_borrow_mut(|idle| {
        let most = conn.max_idle();
        let kept = idle.entry(conn.endpoint()).or_default();
        kept.push(conn);
        (kept.len() > most).then(|| kept.remove(0))
    });
    drop(surplus);
}

/// Closes connections that have been idle too long, or are too old, once a second, for as long as the worker runs.
pub(crate) async fn reap_idle() {
    loop {
        tokio::time::sleep(REAP_INTERVAL).await;
        let mut expired = Vec::new();
        IDLE.with_borrow_mut(|idle| {
            for kept in idle.values_mut() {
                expired.extend(kept.extract_if(.., |conn| conn.is_expired()));
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
