//! Where a request carries what shows who sends it, for the plugins that look for keys and tokens.

use std::borrow::Cow;

use http::header::{AUTHORIZATION, HeaderName};
use portcullis_plugin::{BuildError, Exchange, PluginError, Request};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::names::header_name;

/// Where a credential may stand.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum PlaceConfig {
    /// As a bearer token (RFC 6750, 2.1).
    Bearer,
    /// The value of a header.
    Header(String),
    /// The value of a parameter of the query. It shows in logs of whoever sees the target.
    Query(String),
    /// The value of a cookie.
    Cookie(String),
}

/// A place where credentials are looked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    Bearer,
    Header(HeaderName),
    Query(String),
    Cookie(String),
}

/// A place holds two, or one that is not visible ASCII.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Unclear;

impl Place {
    /// The places of a list, which stands under `from`.
    pub(crate) fn list(from: Vec<PlaceConfig>) -> Result<Box<[Place]>, BuildError> {
        let place = |(number, place)| Place::new(&format!("from[{number}]"), place);
        from.into_iter().enumerate().map(place).collect()
    }

    fn new(at: &str, config: PlaceConfig) -> Result<Self, BuildError> {
        Ok(match config {
            PlaceConfig::Bearer => Place::Bearer,
            PlaceConfig::Header(name) => Place::Header(header_name(&format!("{at}.header"), &name)?),
            PlaceConfig::Query(name) => Place::Query(name),
            PlaceConfig::Cookie(name) => Place::Cookie(name),
        })
    }

    /// The credential that stands here; empty values are none.
    pub(crate) fn find<'r>(&self, request: &'r Request) -> Result<Option<Cow<'r, str>>, Unclear> {
        let found = match self {
            Place::Bearer => header(request, &AUTHORIZATION)?.and_then(bearer).map(Cow::Borrowed),
            Place::Header(name) => header(request, name)?.map(Cow::Borrowed),
            Place::Query(name) => only(request.query_params(name))?,
            Place::Cookie(name) => only(request.cookies(name))?.map(Cow::Borrowed),
        };
        Ok(found.filter(|credential| !credential.is_empty()))
    }

    /// Empties the place.
    pub(crate) fn clear(&self, exchange: &mut Exchange) -> Result<(), PluginError> {
        let mut request = exchange.request_mut();
        match self {
            Place::Bearer => request.headers.remove(&AUTHORIZATION),
            Place::Header(name) => request.headers.remove(name),
            Place::Query(name) => request.remove_query_param(name).map_err(PluginError::failed)?,
            Place::Cookie(name) => request.remove_cookie(name),
        }
        Ok(())
    }
}

fn header<'r>(request: &'r Request, name: &HeaderName) -> Result<Option<&'r str>, Unclear> {
    let value = only(request.headers().get_all(name).iter())?;
    value.map(|value| value.to_str().map(str::trim)).transpose().map_err(|_| Unclear)
}

/// One or none: of two, each could be what somebody else believes.
fn only<T>(mut values: impl Iterator<Item = T>) -> Result<Option<T>, Unclear> {
    match (values.next(), values.next()) {
        (first, None) => Ok(first),
        _ => Err(Unclear),
    }
}

/// The token of `Bearer TOKEN`; of another scheme, none.
fn bearer(value: &str) -> Option<&str> {
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim_start())
}
