//! What a hook function returns.

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use http::{StatusCode, header};
use portcullis_plugin::{Content, Decision, Reply};
use rhai::{Dynamic, ImmutableString, Map, NativeCallContext, Position};

use crate::call::{Outcome, charge};
use crate::value;

/// Made by `deny`, `respond`, `redirect` and `drop`; counts once it is returned from a hook.
#[derive(Debug, Clone)]
pub(crate) struct Verdict {
    /// The reply; none to close the connection.
    reply: Option<Box<Reply>>,
    /// Where it was made.
    pub(crate) place: Position,
    /// In which imported file; none for the script itself.
    pub(crate) file: Option<String>,
}

impl From<Reply> for Verdict {
    fn from(reply: Reply) -> Self {
        Verdict { reply: Some(Box::new(reply)), ..close() }
    }
}

impl Verdict {
    /// The same, made by this call of a script.
    pub(crate) fn made_at(self, call: &NativeCallContext<'_>) -> Self {
        Verdict { place: call.call_position(), file: call.call_source().map(str::to_owned), ..self }
    }

    fn decision(self) -> Decision {
        self.reply.map_or(Decision::Drop, Decision::Respond)
    }
}

/// A decision and, if it is more than to go on, where it was made: in which imported file, none for the script itself.
pub(crate) type Placed = (Decision, Option<(Option<String>, Position)>);

/// The decision that a hook's result stands for.
pub(crate) fn decision(result: Dynamic) -> Result<Placed, String> {
    if result.is_unit() {
        return Ok((Decision::Continue, None));
    }
    match result.try_cast_result::<Verdict>() {
        Ok(mut verdict) => {
            let place = (verdict.file.take(), verdict.place);
            Ok((verdict.decision(), Some(place)))
        }
        Err(other) => Err(format!(
            "a hook returns nothing, deny(..), respond(..), redirect(..) or drop(), not a value of type `{}`, which is that of its last statement: end the hook with `return;`",
            value::type_name(&other),
        )),
    }
}

/// A refusal with a problem document.
pub(crate) fn deny(status: i64, reason: ImmutableString) -> Outcome<Verdict> {
    let well_formed = |char: char| char.is_ascii_lowercase() || char.is_ascii_digit() || "._-".contains(char);
    if reason.is_empty() || reason.len() > 64 || !reason.chars().all(well_formed) {
        return Err(format!("`{reason}` is not a reason code such as `my_policy.missing_header`").into());
    }
    let status = code(status)?;
    if !(status.is_client_error() || status.is_server_error()) {
        return Err(format!("{status} refuses nothing: deny with 400 to 599").into());
    }
    Ok(Reply::deny(status, reason.to_string()).into())
}

/// A reply with this body: text, or a map or an array as JSON.
pub(crate) fn respond(status: i64, body: Dynamic) -> Outcome<Verdict> {
    reply(code(status)?, HeaderMap::new(), body)
}

/// A reply from `#{ status, headers, body }`.
pub(crate) fn respond_map(mut parts: Map) -> Outcome<Verdict> {
    let status = match parts.remove("status") {
        None => StatusCode::OK,
        Some(status) => {
            code(status.as_int().map_err(|found| format!("`status` is a number, not `{found}`"))?)?
        }
    };
    let mut headers = HeaderMap::new();
    match parts.remove("headers").map(Dynamic::try_cast_result::<Map>) {
        None => {}
        Some(Ok(given)) => {
            for (name, value) in given {
                add_header(&mut headers, &name, value)?;
            }
        }
        Some(Err(other)) => {
            return Err(format!("`headers` is a map, not `{}`", value::type_name(&other)).into());
        }
    }
    let body = parts.remove("body").unwrap_or_default();
    if let Some((name, _)) = parts.pop_first() {
        return Err(format!("a reply has `status`, `headers` and `body`, not `{name}`").into());
    }
    reply(status, headers, body)
}

/// A redirect.
pub(crate) fn redirect(status: i64, location: &str) -> Outcome<Verdict> {
    let status = code(status)?;
    if !status.is_redirection() {
        return Err(format!("{status} is no redirect: use 301, 302, 303, 307 or 308").into());
    }
    Ok(Reply::redirect(status, header_value(location)?).into())
}

/// Closes the connection.
pub(crate) fn close() -> Verdict {
    Verdict { reply: None, place: Position::NONE, file: None }
}

/// A status code that may be sent.
pub(crate) fn code(status: i64) -> Outcome<StatusCode> {
    let code = u16::try_from(status).ok().and_then(|status| StatusCode::from_u16(status).ok());
    code.filter(|code| (200..600).contains(&code.as_u16()))
        .ok_or_else(|| format!("{status} is not a status between 200 and 599").into())
}

/// A header's name, or an error that shows it.
pub(crate) fn header_name(name: &str) -> Outcome<HeaderName> {
    HeaderName::from_bytes(name.as_bytes()).map_err(|_| format!("`{name}` is not a header name").into())
}

/// A header's value. What it is stays out of the error, it may be a credential.
pub(crate) fn header_value(value: &str) -> Outcome<HeaderValue> {
    charge(value.len())?;
    HeaderValue::from_str(value)
        .map_err(|_| "a header's value can't have line ends or other control characters".into())
}

fn add_header(headers: &mut HeaderMap, name: &str, value: Dynamic) -> Outcome<()> {
    let name = header_name(name)?;
    let values = if value.is_array() { value.into_array()? } else { vec![value] };
    for value in values {
        headers.append(name.clone(), header_value(&value::text(value)?)?);
    }
    Ok(())
}

fn reply(status: StatusCode, mut headers: HeaderMap, body: Dynamic) -> Outcome<Verdict> {
    let (media_type, bytes) = content(body)?;
    if let (Some(media_type), header::Entry::Vacant(entry)) = (media_type, headers.entry(CONTENT_TYPE)) {
        entry.insert(HeaderValue::from_static(media_type));
    }
    Ok(Reply { status, reason: None, headers, content: Content::Bytes(bytes) }.into())
}

/// A body's bytes and the media type that suits them: a map or an array is written as JSON.
pub(crate) fn content(body: Dynamic) -> Outcome<(Option<&'static str>, Bytes)> {
    if body.is_unit() {
        return Ok((None, Bytes::new()));
    }
    if body.is_map() || body.is_array() {
        return Ok((Some("application/json"), Bytes::from(value::stringify(&body)?)));
    }
    let text = value::text(body)?;
    charge(text.len())?;
    Ok((Some("text/plain; charset=utf-8"), Bytes::copy_from_slice(text.as_bytes())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(verdict: Outcome<Verdict>) -> Reply {
        match verdict {
            Ok(Verdict { reply: Some(reply), .. }) => *reply,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn replies_carry_what_they_were_given() {
        let denied = answer(deny(403, "x.y".into()));
        assert_eq!((denied.status, denied.reason.as_deref()), (StatusCode::FORBIDDEN, Some("x.y")));
        let text = answer(respond(200, "hi".into()));
        assert_eq!(
            (text.headers[CONTENT_TYPE].as_bytes(), text.content),
            (&b"text/plain; charset=utf-8"[..], Content::Bytes("hi".into()))
        );
        let json = Map::from([("body".into(), Dynamic::from_map(Map::from([("a".into(), 1.into())])))]);
        assert_eq!(answer(respond_map(json)).content, Content::Bytes(r#"{"a":1}"#.into()));
        assert_eq!(answer(redirect(303, "/x")).headers[header::LOCATION], "/x");
    }

    #[test]
    fn what_cannot_be_sent_is_refused_with_the_reason() {
        for (verdict, part) in [
            (deny(403, "Not A Code".into()), "reason code"),
            (deny(200, "x.y".into()), "refuses nothing"),
            (respond(99, "".into()), "between 200"),
            (redirect(200, "/"), "no redirect"),
            (redirect(302, "/\r\nx: y"), "control characters"),
            (respond_map(Map::from([("boddy".into(), 1.into())])), "boddy"),
            (respond_map(Map::from([("headers".into(), 1.into())])), "map"),
        ] {
            let message = verdict.unwrap_err().to_string();
            assert!(message.contains(part), "{message}");
        }
    }
}
