//! The server behind the gateway, for HTTP/1 and HTTP/2: it answers with what it saw, or does as the path says.
//!
//! | path ends in | answer |
//! |---|---|
//! | `/status/404` | that status |
//! | `/header/NAME/VALUE` | with that header |
//! | `/body/TEXT` | that text, with its length |
//! | `/json` | a small document with a password in it |
//! | `/big/N` | `N` bytes in chunks |
//! | `/trailers` | a chunked body with a trailer |
//! | `/hold` | what it saw, once [`Origin::release`] is called |
//! | `/break` | the connection is closed after half of the body |
//! | `/stall` | half of the body; the rest once [`Origin::release`] is called |
//! | `/close` | none: the connection is closed |
//! | `/echo` | the request's body in chunks, with its content type |
//! | `/headers/N` | with `N` headers more than usual |
//! | `/head/N` | with a header of `N` bytes |
//! | `/work/MS` | what it saw, after so many milliseconds of work, four requests at a time |
//! | anything else | what it saw, as JSON |

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Body, Frame, Incoming};
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Map, Value, json};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

/// Larger request bodies are an error of the test.
const LARGEST: usize = 64 << 20;

/// Headers of a request: more than a gateway lets through.
const MOST_HEADERS: usize = 1000;

/// Requests that are worked on at a time.
const WORKERS: usize = 4;

/// Bytes per chunk of a big body.
const CHUNK: usize = 16 << 10;

/// An HTTP server on a thread of its own. It ends with the test's process.
pub struct Origin {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    name: String,
    served: AtomicUsize,
    held: AtomicUsize,
    connections: AtomicUsize,
    gate: watch::Sender<bool>,
    workers: Semaphore,
}

type Answered = Response<Pin<Box<dyn Body<Data = Bytes, Error = io::Error> + Send>>>;

impl Origin {
    /// A server named `origin`.
    pub fn start() -> Self {
        Self::named("origin")
    }

    /// A server that says its name in everything it saw.
    pub fn named(name: &str) -> Self {
        Self::at(name, ([127, 0, 0, 1], 0).into()).expect("a port")
    }

    /// The same at an address, which may be in use.
    pub fn at(name: &str, address: SocketAddr) -> io::Result<Self> {
        let listener = std::net::TcpListener::bind(address)?;
        listener.set_nonblocking(true).expect("a listener that does not block");
        let address = listener.local_addr().expect("an address");
        let (gate, _) = watch::channel(false);
        let none = || AtomicUsize::new(0);
        let (served, held, connections) = (none(), none(), none());
        let workers = Semaphore::new(WORKERS);
        let shared = Arc::new(Shared { name: name.to_owned(), served, held, connections, gate, workers });
        let serving = shared.clone();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(serve(listener, serving));
        });
        Ok(Origin { address, shared })
    }

    /// `host:port`.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Requests answered or being answered.
    pub fn served(&self) -> usize {
        self.shared.served.load(Ordering::SeqCst)
    }

    /// Connections that are open.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// Requests to `/hold` that wait.
    pub fn held(&self) -> usize {
        self.shared.held.load(Ordering::SeqCst)
    }

    /// Lets all that wait go on, and everything that comes.
    pub fn release(&self) {
        self.shared.gate.send_replace(true);
    }
}

async fn serve(listener: std::net::TcpListener, shared: Arc<Shared>) {
    let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
    let mut connections = JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        shared.connections.fetch_add(1, Ordering::SeqCst);
        let (shared, counted) = (shared.clone(), shared.clone());
        let service = service_fn(move |request| answer(request, shared.clone()));
        connections.spawn(async move {
            // What fails here is what the test is about, and seen on the other side.
            if begins_http2(&stream).await {
                let http = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                let _ = http.serve_connection(TokioIo::new(stream), service).await;
            } else {
                let mut http = hyper::server::conn::http1::Builder::new();
                http.max_headers(MOST_HEADERS);
                let _ = http.serve_connection(TokioIo::new(stream), service).await;
            }
            counted.connections.fetch_sub(1, Ordering::SeqCst);
        });
        while connections.try_join_next().is_some() {}
    }
}

/// Whether a client begins with the preface of HTTP/2. Nothing of HTTP/1 begins as it does.
async fn begins_http2(stream: &TcpStream) -> bool {
    let mut begin = [0; 3];
    while matches!(stream.peek(&mut begin).await, Ok(1..3)) {
        tokio::task::yield_now().await;
    }
    begin == *b"PRI"
}

async fn answer(request: Request<Incoming>, shared: Arc<Shared>) -> Result<Answered, io::Error> {
    shared.served.fetch_add(1, Ordering::SeqCst);
    let (head, body) = request.into_parts();
    let path = head.uri.path().to_owned();
    let words: Vec<&str> = path.split('/').collect();
    #[allow(clippy::disallowed_methods, reason = "limited")]
    let body = Limited::new(body, LARGEST).collect().await.map_err(io::Error::other)?;
    let trailers = body.trailers().map(shown);
    let body = body.to_bytes();
    match *words.as_slice() {
        [.., "status", code] => {
            let mut response = plain(Bytes::new());
            *response.status_mut() = StatusCode::from_bytes(code.as_bytes()).map_err(io::Error::other)?;
            return Ok(response);
        }
        [.., "header", name, value] => {
            let mut response = plain(Bytes::from_static(b"ok"));
            let name = HeaderName::try_from(name).map_err(io::Error::other)?;
            response.headers_mut().insert(name, HeaderValue::try_from(value).map_err(io::Error::other)?);
            return Ok(response);
        }
        [.., "body", text] => return Ok(plain(Bytes::copy_from_slice(text.as_bytes()))),
        [.., "json"] => {
            return Ok(document(&json!({ "user": "ann", "password": "s3cret", "items": [1, 2] })));
        }
        [.., "big", length] => return Ok(chunks(length.parse().map_err(io::Error::other)?)),
        [.., "trailers"] => return Ok(with_trailers()),
        [.., "break"] => return Ok(broken()),
        [.., "stall"] => return Ok(stalled(&shared)),
        [.., "close"] => return Err(io::Error::other("on purpose")),
        [.., "echo"] => return Ok(echoed(&head.headers, body)),
        [.., "headers", count] => {
            let mut response = plain(Bytes::from_static(b"ok"));
            for at in 0..count.parse().map_err(io::Error::other)? {
                let name = HeaderName::try_from(format!("x-{at}")).map_err(io::Error::other)?;
                response.headers_mut().insert(name, HeaderValue::from_static("1"));
            }
            return Ok(response);
        }
        [.., "head", length] => {
            let mut response = plain(Bytes::from_static(b"ok"));
            let value = "v".repeat(length.parse().map_err(io::Error::other)?);
            let value = HeaderValue::try_from(value).map_err(io::Error::other)?;
            response.headers_mut().insert("x-long", value);
            return Ok(response);
        }
        [.., "hold"] => {
            shared.held.fetch_add(1, Ordering::SeqCst);
            // The sender lives as long as the process.
            let _ = shared.gate.subscribe().wait_for(|open| *open).await;
            shared.held.fetch_sub(1, Ordering::SeqCst);
        }
        [.., "work", millis] => {
            let length = Duration::from_millis(millis.parse().map_err(io::Error::other)?);
            let _worker = shared.workers.acquire().await.map_err(io::Error::other)?;
            tokio::time::sleep(length).await;
        }
        _ => {}
    }
    Ok(document(&json!({
        "origin": shared.name,
        "method": head.method.as_str(),
        "path": path,
        "query": head.uri.query(),
        "version": format!("{:?}", head.version),
        "headers": shown(&head.headers),
        "body": String::from_utf8_lossy(body.get(..body.len().min(4096)).unwrap_or_default()),
        "body_bytes": body.len(),
        "trailers": trailers,
    })))
}

fn plain(body: Bytes) -> Answered {
    Response::new(Box::pin(Full::new(body).map_err(infallible)))
}

fn infallible(never: Infallible) -> io::Error {
    match never {}
}

fn document(value: &Value) -> Answered {
    let mut response = plain(Bytes::from(value.to_string()));
    response.headers_mut().insert("content-type", HeaderValue::from_static("application/json"));
    response
}

fn chunks(length: usize) -> Answered {
    let sizes = (0..length).step_by(CHUNK).map(move |at| CHUNK.min(length - at));
    frames(sizes.map(|size| Ok(Frame::data(Bytes::from(vec![b'x'; size])))))
}

fn echoed(headers: &HeaderMap, body: Bytes) -> Answered {
    let starts = (0..body.len()).step_by(CHUNK);
    let parts: Vec<_> =
        starts.map(|at| Ok(Frame::data(body.slice(at..body.len().min(at + CHUNK))))).collect();
    let mut response = frames(parts.into_iter());
    if let Some(media_type) = headers.get("content-type") {
        response.headers_mut().insert("content-type", media_type.clone());
    }
    response
}

fn stalled(shared: &Shared) -> Answered {
    let mut gate = shared.gate.subscribe();
    let released = async move {
        // The sender lives as long as the process.
        let _ = gate.wait_for(|open| *open).await;
    };
    Response::new(Box::pin(Stalled { begun: false, released: Some(Box::pin(released)) }))
}

fn with_trailers() -> Answered {
    let mut trailers = HeaderMap::new();
    trailers.insert("x-checksum", HeaderValue::from_static("abc"));
    let parts = [Ok(Frame::data(Bytes::from_static(b"body"))), Ok(Frame::trailers(trailers))];
    let mut response = frames(parts.into_iter());
    response.headers_mut().insert("trailer", HeaderValue::from_static("x-checksum"));
    response
}

fn broken() -> Answered {
    let parts = [Ok(Frame::data(Bytes::from_static(b"half"))), Err(io::Error::other("on purpose"))];
    frames(parts.into_iter())
}

/// A body of two halves, the second once it is released.
struct Stalled {
    begun: bool,
    released: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl Body for Stalled {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        if !std::mem::replace(&mut self.begun, true) {
            return Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"half")))));
        }
        let Some(released) = &mut self.released else { return Poll::Ready(None) };
        ready!(released.as_mut().poll(context));
        self.released = None;
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"half")))))
    }
}

/// A body whose frames leave one by one: between two of them it gives up its turn.
struct Frames<I> {
    frames: I,
    rested: bool,
}

fn frames(
    frames: impl Iterator<Item = Result<Frame<Bytes>, io::Error>> + Send + Unpin + 'static,
) -> Answered {
    Response::new(Box::pin(Frames { frames, rested: true }))
}

impl<I: Iterator<Item = Result<Frame<Bytes>, io::Error>> + Unpin> Body for Frames<I> {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        self.rested = !self.rested;
        if self.rested {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(self.frames.next())
    }
}

/// Every header by name, repeated ones joined (RFC 9110, 5.3).
fn shown(headers: &HeaderMap) -> Value {
    let joined = |name| {
        let values: Vec<_> =
            headers.get_all(name).iter().map(|value| String::from_utf8_lossy(value.as_bytes())).collect();
        values.join(", ")
    };
    headers.keys().map(|name| (name.as_str().to_owned(), joined(name).into())).collect::<Map<_, _>>().into()
}
