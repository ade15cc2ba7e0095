//! Questions over HTTP/2, and gRPC's own
//! (<https://github.com/grpc/grpc/blob/master/doc/health-checking.md>).

use bytes::{BufMut, Bytes, BytesMut};
use h2::RecvStream;
use h2::client::{Builder, SendRequest};
use http::header::{CONTENT_TYPE, HeaderMap, HeaderValue, TE};
use http::{Method, Request, Response, StatusCode, Version};
use tokio::io::{AsyncRead, AsyncWrite};

use super::Question;

/// Bytes of an answer that are looked at: the message of gRPC's protocol has two.
const LONGEST_ANSWER: usize = 64;
const METHOD: &str = "/grpc.health.v1.Health/Check";
/// A gRPC message stands behind a flag and its length.
const PREFIX: usize = 5;
/// `status: SERVING`, as protobuf writes it.
const SERVING: [u8; 2] = [0x08, 1];

/// The status of the answer to a `GET`.
pub(super) async fn get(
    io: impl AsyncRead + AsyncWrite + Unpin,
    question: &Question<'_>,
    path: &str,
) -> Result<u16, String> {
    let request = request(Method::GET, question, path)?;
    let asked = |sender| async move { Ok(send(sender, request, Bytes::new()).await?.status().as_u16()) };
    connected(io, asked).await
}

/// Whether a gRPC server says that it serves.
pub(super) async fn serves(
    io: impl AsyncRead + AsyncWrite + Unpin,
    question: &Question<'_>,
    service: &str,
) -> Result<(), String> {
    let mut request = request(Method::POST, question, METHOD)?;
    request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    request.headers_mut().insert(TE, HeaderValue::from_static("trailers"));
    let message = message(service);
    let asked = |sender| async move {
        let (head, mut incoming) = send(sender, request, message).await?.into_parts();
        let mut read = BytesMut::new();
        while let Some(data) = incoming.data().await {
            read.put(data?);
            if read.len() > LONGEST_ANSWER {
                break;
            }
        }
        let trailers = if read.len() > LONGEST_ANSWER { None } else { incoming.trailers().await? };
        Ok(judge(head.status, &head.headers, trailers.as_ref(), &read))
    };
    connected(io, asked).await?
}

fn judge(
    status: StatusCode,
    headers: &HeaderMap,
    trailers: Option<&HeaderMap>,
    body: &[u8],
) -> Result<(), String> {
    if status != StatusCode::OK {
        return Err(format!("status {}", status.as_u16()));
    }
    // What has no message has its trailers in the head.
    match trailers.unwrap_or(headers).get("grpc-status") {
        Some(code) if code == "0" => {}
        Some(code) => return Err(format!("gRPC status {}", code.to_str().unwrap_or_default())),
        None => return Err("the answer is not gRPC".to_owned()),
    }
    match body.get(PREFIX..) {
        Some(message) if message == SERVING => Ok(()),
        _ => Err("it says that it does not serve".to_owned()),
    }
}

fn request(method: Method, question: &Question<'_>, path: &str) -> Result<Request<()>, String> {
    let Question { host, headers } = question;
    let request = Request::builder().method(method).uri(format!("http://{host}{path}"));
    let request = request.version(Version::HTTP_2).header("user-agent", "portcullis-health");
    let request = headers.iter().fold(request, |request, (name, value)| request.header(name.as_str(), value));
    request.body(()).map_err(|error| error.to_string())
}

/// `HealthCheckRequest { service }` (protobuf's field 1, a string).
fn message(service: &str) -> Bytes {
    let mut message = BytesMut::new();
    if !service.is_empty() {
        message.put_u8(0x0a);
        let mut length = service.len();
        while length >= 0x80 {
            message.put_u8(length as u8 | 0x80);
            length >>= 7;
        }
        message.put_u8(length as u8);
        message.put_slice(service.as_bytes());
    }
    let mut framed = BytesMut::new();
    framed.put_u8(0);
    framed.put_u32(message.len() as u32);
    framed.put(message);
    framed.freeze()
}

/// Runs what sends requests over a new connection, and the connection with it.
async fn connected<T, F: Future<Output = Result<T, h2::Error>>>(
    io: impl AsyncRead + AsyncWrite + Unpin,
    asked: impl FnOnce(SendRequest<Bytes>) -> F,
) -> Result<T, String> {
    let failed = |error: h2::Error| error.to_string();
    let (sender, connection) = Builder::new().enable_push(false).handshake(io).await.map_err(failed)?;
    tokio::select! {
        answer = asked(sender) => answer.map_err(failed),
        ended = connection => Err(match ended {
            Ok(()) => "the connection ended before the answer".to_owned(),
            Err(error) => failed(error),
        }),
    }
}

async fn send(
    sender: SendRequest<Bytes>,
    request: Request<()>,
    body: Bytes,
) -> Result<Response<RecvStream>, h2::Error> {
    let (response, mut upload) = sender.ready().await?.send_request(request, body.is_empty())?;
    if !body.is_empty() {
        upload.send_data(body, true)?;
    }
    response.await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_framed_and_says_its_service() {
        assert_eq!(&message("")[..], [0, 0, 0, 0, 0]);
        assert_eq!(&message("a.B")[..], [0, 0, 0, 0, 5, 0x0a, 3, b'a', b'.', b'B']);
        assert_eq!(&message(&"x".repeat(200))[..8], [0, 0, 0, 0, 203, 0x0a, 0xc8, 1]);
    }

    #[test]
    fn only_who_says_that_it_serves_does() {
        let told =
            |code| HeaderMap::from_iter([("grpc-status".parse().unwrap(), HeaderValue::from_static(code))]);
        let judged = |status, code, body: &[u8]| judge(status, &HeaderMap::new(), Some(&told(code)), body);
        let serving = [0, 0, 0, 0, 2, 8, 1];
        assert_eq!(judged(StatusCode::OK, "0", &serving), Ok(()));
        for wrong in [&[0, 0, 0, 0, 2, 8, 2][..], &[0, 0, 0, 0, 0], &[], &[0, 0, 0, 0, 2, 8, 1, 0]] {
            assert!(judged(StatusCode::OK, "0", wrong).is_err(), "{wrong:?}");
        }
        assert_eq!(judged(StatusCode::OK, "12", &serving), Err("gRPC status 12".to_owned()));
        assert_eq!(judged(StatusCode::NOT_FOUND, "0", &serving), Err("status 404".to_owned()));
        assert!(judge(StatusCode::OK, &HeaderMap::new(), None, &serving).is_err());
        assert_eq!(judge(StatusCode::OK, &told("5"), None, &[]), Err("gRPC status 5".to_owned()));
    }
}
