use std::io::Write;
use std::net::TcpListener;
use std::pin::pin;
use std::sync::{Arc, mpsc};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::task::yield_now;

use super::place;
use crate::metrics::Metrics;
use crate::upstream::{AttemptFailure, Endpoint, Protocol, Upstream};

/// SETTINGS with SETTINGS_MAX_CONCURRENT_STREAMS of 0 (RFC 9113, 6.5).
const NO_ROOM: [u8; 15] = [0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0];
/// Much longer than it takes.
const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::test]
async fn no_more_than_a_few_connections_without_room_are_opened_for_a_request() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (told, settings) = mpsc::channel();
    std::thread::spawn(move || {
        let mut kept = Vec::new();
        for stream in listener.incoming() {
            kept.push(stream.unwrap());
            kept.last_mut().unwrap().write_all(&NO_ROOM).unwrap();
            if told.send(()).is_err() {
                return;
            }
        }
    });
    let settings = Arc::new(std::sync::Mutex::new(settings));
    let metrics = Metrics::new(1);
    let endpoint = Arc::new(Endpoint::new(&address.to_string(), &metrics).unwrap());
    let upstream = Upstream::new("api", vec![endpoint.clone()], metrics.upstream("api"));
    let upstream = Arc::new(Upstream { protocol: Protocol::Http2, ..upstream });
    let mut placing = pin!(place(&upstream, &endpoint));
    let mut poll = || placing.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    for opened in 1..=3 {
        assert!(poll().is_pending());
        // Behind the task that connects: it goes on when what the endpoint allows is there to be read.
        let settings = settings.clone();
        #[expect(clippy::disallowed_methods, reason = "no exchange is there to be told of a panic")]
        let arrived = tokio::spawn(async move { settings.lock().unwrap().recv_timeout(PATIENCE).unwrap() });
        arrived.await.unwrap();
        while upstream.metrics.http2_connects.value() < opened {
            yield_now().await;
        }
    }
    assert!(matches!(poll(), Poll::Ready(Err(AttemptFailure::Failed))));
    assert_eq!(upstream.metrics.connects.value(), 3);
}
