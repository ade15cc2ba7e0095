//! The time that a request has, as headers tell it from hop to hop.
//!
//! The name says the form: `grpc-timeout` has gRPC's (`100m`), one that ends in `-ms` is a number of
//! milliseconds, as Envoy's `x-envoy-expected-rq-timeout-ms`; any other is a number of seconds or has a unit (`250ms`).

use std::time::Duration;

use http::header::{HeaderName, HeaderValue};

/// Digits of a number, as gRPC bounds them: beyond that nobody waits.
const MAX_DIGITS: usize = 8;

/// Which headers tell it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deadline {
    /// What a trusted proxy says; it can only take time away.
    pub read: Option<HeaderName>,
    /// What the upstream is told: what is left when an attempt begins.
    pub tell: Option<HeaderName>,
}

#[derive(Clone, Copy)]
enum Form {
    Grpc,
    Milliseconds,
    Unit,
}

fn form(name: &HeaderName) -> Form {
    match name.as_str() {
        "grpc-timeout" => Form::Grpc,
        name if name.ends_with("-ms") => Form::Milliseconds,
        _ => Form::Unit,
    }
}

/// The time that a header gives; none if it can't be read.
pub(crate) fn read(name: &HeaderName, value: &HeaderValue) -> Option<Duration> {
    let text = value.to_str().ok()?;
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at_checked(digits)?;
    let number: u64 = number.parse().ok().filter(|_| digits <= MAX_DIGITS)?;
    match (form(name), unit) {
        (Form::Grpc, "H") => Some(Duration::from_secs(number * 3600)),
        (Form::Grpc, "M") => Some(Duration::from_secs(number * 60)),
        (Form::Grpc, "S") | (Form::Unit, "" | "s") => Some(Duration::from_secs(number)),
        (Form::Grpc, "m") | (Form::Milliseconds, "") | (Form::Unit, "ms") => {
            Some(Duration::from_millis(number))
        }
        (Form::Grpc, "u") => Some(Duration::from_micros(number)),
        (Form::Grpc, "n") => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

/// The same for the next hop.
pub(crate) fn tell(name: &HeaderName, left: Duration) -> HeaderValue {
    let longest = 10_u128.pow(MAX_DIGITS as u32) - 1;
    let millis = left.as_millis().min(longest);
    let text = match form(name) {
        Form::Grpc => format!("{millis}m"),
        Form::Milliseconds => millis.to_string(),
        Form::Unit => format!("{millis}ms"),
    };
    HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static("0"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_read_and_told_in_the_form_that_its_name_says() {
        for (name, text, millis, told) in [
            ("grpc-timeout", "2S", Some(2000), "2000m"),
            ("grpc-timeout", "150m", Some(150), "150m"),
            ("grpc-timeout", "2M", Some(120_000), "120000m"),
            ("grpc-timeout", "1H", Some(3_600_000), "3600000m"),
            ("grpc-timeout", "5000u", Some(5), "5m"),
            ("grpc-timeout", "7000000n", Some(7), "7m"),
            ("grpc-timeout", "7", None, ""),
            ("x-envoy-expected-rq-timeout-ms", "250", Some(250), "250"),
            ("x-envoy-expected-rq-timeout-ms", "250ms", None, ""),
            ("x-request-timeout", "3", Some(3000), "3000ms"),
            ("x-request-timeout", "3s", Some(3000), "3000ms"),
            ("x-request-timeout", "40ms", Some(40), "40ms"),
            ("x-request-timeout", "-1", None, ""),
            ("x-request-timeout", "", None, ""),
            ("x-request-timeout", "soon", None, ""),
            ("grpc-timeout", "123456789S", None, ""),
        ] {
            let name = HeaderName::from_static(name);
            let time = read(&name, &HeaderValue::from_static(text));
            assert_eq!(time.map(|time| time.as_millis()), millis, "{name}: {text}");
            if let Some(time) = time {
                assert_eq!(tell(&name, time), told);
            }
        }
        let long = Duration::from_secs(3600 * 24 * 365 * 10);
        assert_eq!(tell(&HeaderName::from_static("grpc-timeout"), long), "99999999m");
    }
}
