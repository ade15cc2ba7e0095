use std::time::Duration;

use http_body_util::{BodyExt, Full, StreamBody};

use super::*;
use crate::pace::Pace;

fn full(text: &'static str) -> impl Body<Data = Bytes, Error = Fault> + Unpin {
    Full::new(Bytes::from_static(text.as_bytes())).map_err(|never| match never {})
}

#[tokio::test]
async fn the_budget_bites_and_is_given_back() {
    let budget = Budget::new(10);
    let mut held = budget.hold();
    let mut body = full("12345678");
    let read = whole(&mut body, 100, &mut held, Fault::BodyTooLarge).await;
    assert_eq!(read.ok().map(|(read, _)| read).as_deref(), Some(&b"12345678"[..]));
    let mut more = budget.hold();
    let mut body = full("1234");
    let refused = whole(&mut body, 100, &mut more, Fault::BodyTooLarge).await;
    assert!(matches!(refused, Err(Fault::BodyBudget)));
    drop((held, more));
    assert_eq!(budget.used(), 0);
}

#[tokio::test]
async fn trailers_that_were_not_sent_are_sent_again_and_behind_chunks() {
    let client = ClientBody::new(Incoming::Empty, Pace::new(Duration::MAX, None));
    let (body, _) = RequestBody::stream(client, Vec::new(), None);
    let trailers = HeaderMap::from_iter([(http::header::ETAG, http::HeaderValue::from_static("x"))]);
    let mut body = body.put_back(Bytes::new(), Some(trailers.clone())).put_back(Bytes::new(), None);
    assert!(!body.is_end_stream() && body.size_hint().exact().is_none());
    let frame = body.frame().await.unwrap().unwrap();
    assert_eq!(frame.into_trailers().ok(), Some(trailers));
    assert!(body.frame().await.is_none() && body.is_end_stream());
}

#[tokio::test]
async fn a_whole_body_is_bounded_whether_or_not_it_says_its_length() {
    let budget = Budget::new(1000);
    let mut known = full("123456");
    let refused = whole(&mut known, 5, &mut budget.hold(), Fault::BodyTooLarge).await;
    assert!(matches!(refused, Err(Fault::BodyTooLarge)));
    let chunks =
        ["123", "456"].map(|chunk| Ok::<_, Fault>(Frame::data(Bytes::from_static(chunk.as_bytes()))));
    let mut unknown = StreamBody::new(futures_util::stream::iter(chunks));
    let refused = whole(&mut unknown, 5, &mut budget.hold(), Fault::BodyTooLarge).await;
    assert!(matches!(refused, Err(Fault::BodyTooLarge)));
}
