//! A small HTTP/1.1 server for what the gateway serves beside traffic: the admin interface and the demo.

use std::convert::Infallible;
use std::error::Error;
use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// Bounds of a server.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Connections at once; more wait to be accepted.
    pub(crate) connections: usize,
    /// From a connection's beginning to its end.
    pub(crate) lifetime: Duration,
    /// Whether a connection may carry several requests.
    pub(crate) keep_alive: bool,
}

/// A client has this long for a request's head.
const HEAD: Duration = Duration::from_secs(10);

/// After a failed accept, which is mostly for want of descriptors, trying again at once would spin.
const AFTER_FAILED_ACCEPT: Duration = Duration::from_millis(100);

/// Serves until it is dropped.
pub(crate) async fn serve<F, A, B>(listener: TcpListener, limits: Limits, answer: F)
where
    F: Fn(Request<Incoming>) -> A + Clone + Send + 'static,
    A: Future<Output = Response<B>> + Send + 'static,
    B: Body<Data = Bytes, Error: Into<Box<dyn Error + Send + Sync>>> + Send + 'static,
{
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            accepted = listener.accept(), if connections.len() < limits.connections => match accepted {
                Ok((stream, _)) => {
                    let answer = answer.clone();
                    let service = service_fn(move |request| {
                        let answer = answer(request);
                        async move { Ok::<_, Infallible>(answer.await) }
                    });
                    let connection = http1::Builder::new()
                        .timer(TokioTimer::new())
                        .header_read_timeout(HEAD)
                        .keep_alive(limits.keep_alive)
                        .serve_connection(TokioIo::new(stream), service);
                    connections.spawn(tokio::time::timeout(limits.lifetime, connection));
                }
                Err(_) => tokio::time::sleep(AFTER_FAILED_ACCEPT).await,
            },
        }
    }
}

/// A whole body of at most `limit` bytes; an error if it is longer or breaks off.
pub(crate) async fn whole<B>(body: B, limit: usize) -> Result<Vec<u8>, String>
where
    B: Body<Data = Bytes>,
    B::Error: std::fmt::Display,
{
    let mut body = pin!(body);
    let mut whole = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| error.to_string())?;
        let Ok(data) = frame.into_data() else { continue };
        if whole.len() + data.len() > limit {
            return Err(format!("more than {limit} bytes"));
        }
        whole.extend_from_slice(&data);
    }
    Ok(whole)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_head_that_does_not_end_is_not_waited_for_as_long_as_a_connection_may_last() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let limits = Limits { connections: 1, lifetime: 6 * HEAD, keep_alive: false };
        let answer = |_| async { Response::new(String::new()) };
        let (begin, mut rest) = (Instant::now(), Vec::new());
        tokio::select! {
            () = serve(listener, limits, answer) => {}
            () = async {
                let mut client = TcpStream::connect(address).await.unwrap();
                client.write_all(b"GET / HTTP/1.1\r\nhost: ").await.unwrap();
                client.read_to_end(&mut rest).await.unwrap();
            } => {}
        }
        assert!((HEAD..2 * HEAD).contains(&begin.elapsed()), "{:?}", begin.elapsed());
    }
}
