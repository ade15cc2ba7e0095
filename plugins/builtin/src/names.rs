//! Header names that a configuration mentions.

use http::header::{
    CONNECTION, CONTENT_LENGTH, HOST, HeaderName, HeaderValue, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use portcullis_plugin::BuildError;

/// A header's name; `at` is the path of the setting.
pub(crate) fn header_name(at: &str, name: &str) -> Result<HeaderName, BuildError> {
    HeaderName::try_from(name).map_err(|_| BuildError::at(at, format!("`{name}` is not a header name")))
}

/// A list of headers' names.
pub(crate) fn header_names(at: &str, names: &[String]) -> Result<Vec<HeaderName>, BuildError> {
    names.iter().enumerate().map(|(index, name)| header_name(&format!("{at}[{index}]"), name)).collect()
}

/// A list of names as one header value, `a, b`.
pub(crate) fn joined(at: &str, names: &[String]) -> Result<HeaderValue, BuildError> {
    HeaderValue::try_from(names.join(", "))
        .map_err(|_| BuildError::at(at, "these names do not fit into a header"))
}

/// Refuses headers that are the gateway's own: those that frame a message (RFC 9112, 6) and those
/// that belong to one connection (RFC 9110, 7.6.1). Whoever sets them can split messages.
pub(crate) fn refuse_framing(at: &str, name: &HeaderName) -> Result<(), BuildError> {
    const FRAMING: [HeaderName; 6] = [CONNECTION, CONTENT_LENGTH, TE, TRAILER, TRANSFER_ENCODING, UPGRADE];
    if FRAMING.contains(name) || name == "keep-alive" || name == "proxy-connection" {
        return Err(BuildError::at(at, format!("`{name}` is written by the gateway alone"))
            .help("framing and connection headers can't be set by a plugin"));
    }
    Ok(())
}

/// Refuses `Host`, which has to be there exactly once.
pub(crate) fn refuse_host(at: &str, name: &HeaderName) -> Result<(), BuildError> {
    match *name == HOST {
        true => Err(BuildError::at(at, "`host` must be there exactly once").help("use `set` to change it")),
        false => Ok(()),
    }
}
