//! The demo upstream: a small server on loopback that shows a newcomer what a request looks like when it
//! comes out behind the gateway.
//!
//! It answers with what it received, as JSON. `/slow?ms=500` takes its time, `/big?n=1000000` is long.

use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Either, Full};
use hyper::body::{Body, Frame, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use hyper::{Request, Response};
use serde_json::{Map, Value, json};

use crate::server::{self, Limits};

/// The variable in which a configuration finds the demo's port.
pub(crate) const VARIABLE: &str = "PORTCULLIS_DEMO_PORT";

/// Nothing the demo serves is longer than this.
const BIGGEST: u64 = 1 << 30;

/// Nothing the demo serves takes longer than this.
const SLOWEST: u64 = 60_000;

const LIMITS: Limits =
    Limits { connections: 256, lifetime: Duration::from_secs(24 * 60 * 60), keep_alive: true };

/// Serves the demo on a thread of its own, for the life of the process; returns its port.
pub(crate) fn start() -> io::Result<u16> {
    let listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
    listener.set_nonblocking(true)?;
    let port = listener.local_addr()?.port();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    thread::Builder::new().name("demo upstream".into()).spawn(move || {
        runtime.block_on(async {
            match tokio::net::TcpListener::from_std(listener) {
                Ok(listener) => server::serve(listener, LIMITS, answer).await,
                Err(error) => {
                    tracing::warn!(target: "portcullis::demo", %error, "the demo upstream can't be served")
                }
            }
        });
    })?;
    Ok(port)
}

async fn answer(request: Request<Incoming>) -> Response<Either<Full<Bytes>, Zeros>> {
    let (head, body) = request.into_parts();
    let query = head.uri.query().unwrap_or_default();
    let body_bytes = length(body).await;
    match head.uri.path() {
        "/big" => {
            let left = number(query, "n").unwrap_or(1 << 20).min(BIGGEST);
            return Response::new(Either::Right(Zeros { left }));
        }
        "/slow" => {
            let millis = number(query, "ms").unwrap_or(2000).min(SLOWEST);
            tokio::time::sleep(Duration::from_millis(millis)).await;
        }
        _ => {}
    }
    let seen = json!({
        "method": head.method.as_str(),
        "path": head.uri.path(),
        "query": query,
        "headers": headers(&head.headers),
        "body_bytes": body_bytes,
    });
    let mut response = Response::new(Either::Left(Full::from(format!("{seen:#}\n"))));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// Every header by name; repeated ones joined as RFC 9110, section 5.3, has it.
fn headers(headers: &HeaderMap) -> Value {
    let joined = |name| {
        let values: Vec<_> =
            headers.get_all(name).iter().map(|v| String::from_utf8_lossy(v.as_bytes())).collect();
        values.join(", ")
    };
    headers.keys().map(|name| (name.as_str().to_owned(), joined(name).into())).collect::<Map<_, _>>().into()
}

/// Reads the body to its end, keeping nothing.
async fn length(mut body: Incoming) -> u64 {
    let mut length = 0;
    while let Some(Ok(frame)) = body.frame().await {
        length += frame.data_ref().map_or(0, |data| data.len() as u64);
    }
    length
}

fn number(query: &str, name: &str) -> Option<u64> {
    query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('=')).and_then(|n| n.parse().ok())
}

/// A body of zeros, made as it is sent.
#[derive(Debug)]
struct Zeros {
    left: u64,
}

impl Body for Zeros {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        static CHUNK: [u8; 64 << 10] = [b'0'; 64 << 10];
        let length = self.left.min(CHUNK.len() as u64);
        self.left -= length;
        let chunk = CHUNK.get(..length as usize).filter(|chunk| !chunk.is_empty());
        Poll::Ready(chunk.map(|chunk| Ok(Frame::data(Bytes::from_static(chunk)))))
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        hyper::body::SizeHint::with_exact(self.left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpStream;

    fn ask(request: &str) -> (String, String) {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, start().unwrap())).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.to_ascii_lowercase(), body.to_owned())
    }

    #[test]
    fn the_demo_tells_what_it_received() {
        let (head, body) = ask(
            "POST /a?b=c HTTP/1.1\r\nhost: x\r\nx-a: 1\r\nx-a: 2\r\ncontent-length: 3\r\nconnection: close\r\n\r\nabc",
        );
        assert!(
            head.starts_with("http/1.1 200") && head.contains("content-type: application/json"),
            "{head}"
        );
        let seen: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(
            (&seen["method"], &seen["path"], &seen["query"]),
            (&json!("POST"), &json!("/a"), &json!("b=c"))
        );
        assert_eq!((&seen["headers"]["x-a"], &seen["body_bytes"]), (&json!("1, 2"), &json!(3)));
    }

    #[test]
    fn big_is_as_long_as_asked() {
        let (head, body) = ask("GET /big?n=100000 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        assert!(head.contains("content-length: 100000"), "{head}");
        assert_eq!(body.len(), 100_000);
    }

    #[test]
    fn slow_answers_in_the_end() {
        let (head, _) = ask("GET /slow?ms=1 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        assert!(head.starts_with("http/1.1 200"), "{head}");
    }
}
