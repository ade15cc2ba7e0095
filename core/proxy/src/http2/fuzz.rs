//! What has to hold for whatever an HTTP/2 client sends.

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;

use super::PREFACE;
use super::frames::check;
use super::malformed::push_literal;
use crate::body::RequestBody;
use crate::head::{Head, understand};
use crate::http1::fuzz::strict::{self, described};
use crate::http1::fuzz::{Memory, listener_limits, sent, within_runtime};

/// Of every head that becomes a request, an HTTP/1 upstream gets exactly one, which reads as it was understood. The
/// fields come as lines, pseudo-headers among them.
pub fn downgrade(lines: &[u8]) {
    within_runtime(|| {
        let Some(head) = head_of(lines) else { return };
        let (request, None) = understand(head, &listener_limits()) else { return };
        let sent = sent(&request, RequestBody::Empty).unwrap_or_default();
        assert_eq!(strict::request(&sent.concat()).head, described(&request));
    });
}

/// The frames of a client are found however they arrive, and no more of them are borne than it may send.
pub fn frames(bytes: &[u8]) {
    check(bytes);
}

/// The head as the library reads it; none of one that it refuses.
fn head_of(lines: &[u8]) -> Option<Head> {
    let fields = lines.split(|byte| *byte == b'\n').filter_map(|line| {
        // A pseudo-header begins with a colon.
        let colon = line.iter().skip(1).position(|byte| *byte == b':')? + 1;
        let (name, value) = line.split_at_checked(colon)?;
        let mut field = vec![0];
        push_literal(&mut field, name);
        push_literal(&mut field, value.get(1..)?);
        Some(field)
    });
    let block: Vec<u8> = fields.flatten().collect();
    // Settings that change nothing, then HEADERS with END_HEADERS and END_STREAM.
    let length = u16::try_from(block.len()).ok().filter(|length| *length <= 16_384)?.to_be_bytes();
    let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    let headers = [&[0][..], &length, &[1, 5, 0, 0, 0, 1]].concat();
    let io = Memory::open(&[PREFACE, &settings, &headers, &block].concat());
    let mut cx = Context::from_waker(Waker::noop());
    let mut builder = h2::server::Builder::new();
    let mut handshake = pin!(builder.enable_connect_protocol().handshake::<_, Bytes>(io));
    let Poll::Ready(Ok(mut connection)) = handshake.as_mut().poll(&mut cx) else { return None };
    let Poll::Ready(Some(Ok((request, _)))) = connection.poll_accept(&mut cx) else { return None };
    Some(request.into_parts().0.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_read_or_refused_as_by_a_connection() {
        let usual = b":method:GET\n:scheme:http\n:authority:a\n:path:/b?c\nx-a:1\nx-long:";
        let head = head_of(&[&usual[..], &[b'v'; 5000]].concat()).unwrap();
        assert_eq!((head.method.as_str(), head.target.unwrap().as_str()), ("GET", "/b?c"));
        assert_eq!((&head.headers["x-a"], head.headers["x-long"].len()), (&"1".parse().unwrap(), 5000));
        for refused in
            ["", ":method:GET", "x-a:1\n:method:GET", ":method:GET\n:scheme:http\n:path:/\nconnection:close"]
        {
            assert!(head_of(refused.as_bytes()).is_none(), "{refused}");
        }
    }
}
