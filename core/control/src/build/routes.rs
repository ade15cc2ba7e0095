//! Routes: what they match, and what they do.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode};
use portcullis_config::{self as config, join};
use portcullis_plugin::RouteMeta;
use portcullis_proxy::generation::{Action, Rewrite, Route, Template};
use portcullis_proxy::mirror::Mirror;
use portcullis_proxy::routes::{HostPattern, PathPattern, Predicate, RouteError, RouteMatch, RouteTable};
use portcullis_proxy::split::{Condition, Split, SplitBy};
use portcullis_proxy::upstream::Upstream;

use super::Builder;
use super::upstreams::hash_by;

impl Builder<'_> {
    /// What each route matches; none if one of them cannot be.
    pub(super) fn matches(&mut self) -> Option<Vec<RouteMatch>> {
        let routes = &self.loaded.config.routes;
        let matches: Vec<_> =
            routes.iter().enumerate().map(|(index, route)| self.route_match(index, route)).collect();
        matches.into_iter().collect()
    }

    fn route_match(&mut self, index: usize, route: &config::Route) -> Option<RouteMatch> {
        let matches = &route.matches;
        let path = format!("routes[{index}].match");
        let pattern = path_pattern(matches);
        if let Err((part, message)) = &pattern {
            self.error(&format!("{path}.{part}"), message);
        }
        if !route.whole {
            return None;
        }
        let mut hosts = Vec::new();
        for (at, host) in matches.hosts.iter().enumerate() {
            match HostPattern::parse(host.as_str()) {
                Ok(host) => hosts.push(host),
                Err(error) => self.error(&format!("{path}.hosts[{at}]"), error.to_string()),
            }
        }
        let methods = matches.methods.iter().map(|method| Method::try_from(method.as_str()));
        let methods: Result<Vec<_>, _> = methods.collect();
        if methods.is_err() {
            self.error(&format!("{path}.methods"), "this is not a method");
        }
        let headers = self.header_predicates(&format!("{path}.headers"), &matches.headers);
        let query = matches.query.iter().map(|(name, wanted)| (name.clone(), predicate(wanted))).collect();
        let complete = hosts.len() == matches.hosts.len();
        let matched =
            RouteMatch { hosts, path: pattern.ok()?, methods: methods.ok()?, headers: headers?, query };
        complete.then_some(matched)
    }

    /// What each route does; none if one of them cannot.
    pub(super) fn routes(&mut self, upstreams: &[Arc<Upstream>]) -> Option<Vec<Route>> {
        let routes = &self.loaded.config.routes;
        let built: Vec<_> = routes
            .iter()
            .enumerate()
            .map(|(index, route)| self.route(&format!("routes[{index}]"), route, upstreams))
            .collect();
        built.into_iter().collect()
    }

    fn route(&mut self, path: &str, route: &config::Route, upstreams: &[Arc<Upstream>]) -> Option<Route> {
        let captures = captures(route);
        let rewrite = self.rewrite(&format!("{path}.rewrite"), &route.rewrite, captures.as_deref());
        let action = match &route.action {
            config::Action::Upstream(config::Target::Upstream(name)) => {
                named(upstreams, name).map(Action::Upstream)
            }
            config::Action::Upstream(config::Target::Split(split)) => {
                self.split(&format!("{path}.upstream"), split, upstreams)
            }
            config::Action::Redirect(redirect) => {
                let to = self.template(&format!("{path}.redirect.to"), &redirect.to, captures.as_deref());
                let status =
                    StatusCode::from_u16(redirect.status.code()).unwrap_or(StatusCode::PERMANENT_REDIRECT);
                to.map(|to| Action::Redirect { status, to })
            }
            config::Action::Respond(respond) => self.respond(&format!("{path}.respond"), respond),
        };
        let mirror = route.mirror.as_ref().map(|mirror| self.mirror(&route.name, mirror, upstreams));
        let captures = captures.filter(|_| route.whole)?;
        Some(Route {
            meta: Arc::new(RouteMeta { name: route.name.as_str().into(), captures: captures.into() }),
            rewrite: rewrite?,
            upgrades: route.upgrades.iter().filter_map(protocol).collect(),
            action: action?,
            timeout: route.timeout.map(|timeout| timeout.0),
            mirror: all_or_nothing(mirror)?,
            metrics: self.services.metrics.route(&route.name),
        })
    }

    fn split(&mut self, path: &str, split: &config::Split, upstreams: &[Arc<Upstream>]) -> Option<Action> {
        let (mut conditions, mut shares) = (Vec::new(), Vec::new());
        for (index, arm) in split.split.iter().enumerate() {
            // Names of nothing are errors already.
            let upstream = named(upstreams, &arm.upstream)?;
            match &arm.when {
                Some(when) => {
                    let path = format!("{path}.split[{index}].when.headers");
                    conditions.push((self.condition(&path, when)?, upstream));
                }
                None => shares.push((arm.share(), upstream)),
            }
        }
        let by = match &split.by {
            config::SplitBy::Lot => SplitBy::Lot,
            config::SplitBy::Hash(by) => match hash_by(by) {
                Ok(by) => SplitBy::Hash(by),
                Err(message) => {
                    self.error(&format!("{path}.by"), message);
                    return None;
                }
            },
            config::SplitBy::Sticky { cookie } => SplitBy::Sticky(cookie.clone()),
        };
        Split::new(conditions, shares, by).map(Action::Split)
    }

    fn condition(&mut self, path: &str, when: &config::When) -> Option<Condition> {
        let headers = self.header_predicates(path, &when.headers)?;
        Some(Condition { headers, principals: when.principals.clone(), roles: when.roles.clone() })
    }

    fn mirror(
        &self,
        route: &str,
        mirror: &config::Mirror,
        upstreams: &[Arc<Upstream>],
    ) -> Option<Arc<Mirror>> {
        Some(Arc::new(Mirror {
            upstream: named(upstreams, &mirror.upstream)?,
            share: mirror.share.0,
            max_body: usize::try_from(mirror.body.0).unwrap_or(usize::MAX),
            max_requests: mirror.max_requests.get(),
            metrics: self.services.metrics.mirror(route),
        }))
    }

    fn header_predicates(
        &mut self,
        path: &str,
        wanted: &BTreeMap<config::HeaderName, config::Predicate>,
    ) -> Option<Vec<(HeaderName, Predicate)>> {
        let headers = wanted
            .iter()
            .map(|(name, wanted)| HeaderName::try_from(name.as_str()).map(|name| (name, predicate(wanted))));
        let headers: Result<Vec<_>, _> = headers.collect();
        headers.map_err(|_| self.error(path, "this is not a header's name")).ok()
    }

    fn rewrite(
        &mut self,
        path: &str,
        rewrite: &config::Rewrite,
        captures: Option<&[Box<str>]>,
    ) -> Option<Rewrite> {
        let template = rewrite.path.as_ref().map(|template| {
            // `{rest**}` means the same here as in a match; the name alone says which capture it is.
            self.template(&format!("{path}.path"), &template.as_str().replace("**}", "}"), captures)
        });
        let host = rewrite.host.as_ref().map(|host| {
            let value = HeaderValue::try_from(host);
            value.map_err(|_| self.error(&format!("{path}.host"), "this cannot be sent as a header")).ok()
        });
        Some(Rewrite {
            path: all_or_nothing(template)?,
            strip_prefix: rewrite.strip_prefix.as_ref().map(|prefix| prefix.as_str().to_owned()),
            add_prefix: rewrite.add_prefix.as_ref().map(|prefix| prefix.as_str().to_owned()),
            host: all_or_nothing(host)?,
        })
    }

    fn template(&mut self, path: &str, text: &str, captures: Option<&[Box<str>]>) -> Option<Template> {
        Template::parse(text, captures?).map_err(|message| self.error(path, message)).ok()
    }

    fn respond(&mut self, path: &str, respond: &config::Respond) -> Option<Action> {
        let (content_type, body) = match (&respond.body, &respond.json) {
            (Some(text), _) => (Some("text/plain; charset=utf-8"), Bytes::from(text.clone())),
            (None, Some(json)) => (Some("application/json"), Bytes::from(json.to_string())),
            (None, None) => (None, Bytes::new()),
        };
        let mut headers = self.headers(&format!("{path}.headers"), &respond.headers)?;
        if let (Some(content_type), false) = (content_type, headers.contains_key(CONTENT_TYPE)) {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        }
        let status = StatusCode::from_u16(respond.status.code()).unwrap_or(StatusCode::OK);
        Some(Action::Respond { status, headers, body })
    }

    fn headers(&mut self, path: &str, config: &BTreeMap<config::HeaderName, String>) -> Option<HeaderMap> {
        let mut headers = HeaderMap::new();
        for (name, value) in config {
            match (HeaderName::try_from(name.as_str()), HeaderValue::try_from(value)) {
                (Ok(name), Ok(value)) => {
                    headers.insert(name, value);
                }
                _ => self.error(&join(path, name.as_str()), "this cannot be sent as a header"),
            }
        }
        (headers.len() == config.len()).then_some(headers)
    }
}

fn named(upstreams: &[Arc<Upstream>], name: &str) -> Option<Arc<Upstream>> {
    upstreams.iter().find(|upstream| &*upstream.name == name).cloned()
}

/// The route at fault and what to say about it.
pub(super) fn conflict(error: &RouteError, routes: &[config::Route]) -> (usize, String) {
    match error {
        RouteError::Conflict { first, second } => {
            let name = routes.get(*first).map_or("", |route| route.name.as_str());
            (*second, format!("never reached: route `{name}` wants the same"))
        }
        RouteError::Pattern { index, error } => (*index, error.to_string()),
    }
}

/// The names that templates may use, unless they stand in a path that has errors.
fn captures(route: &config::Route) -> Option<Vec<Box<str>>> {
    let pattern = path_pattern(&route.matches).ok().filter(|_| route.captures_known);
    pattern.map(|pattern| pattern.capture_names())
}

/// The path that is matched, or which setting is wrong and why.
fn path_pattern(matches: &config::Match) -> Result<PathPattern, (&'static str, String)> {
    let (setting, pattern) = match (&matches.path, &matches.prefix) {
        (Some(template), _) if template.as_str().contains(['{', '*']) => {
            ("path", PathPattern::template(template.as_str()).map_err(|error| error.to_string()))
        }
        (Some(path), _) => ("path", Ok(PathPattern::Exact(path.as_str().to_owned()))),
        (None, Some(prefix)) => ("prefix", Ok(PathPattern::Prefix(prefix.as_str().to_owned()))),
        (None, None) => ("path", Ok(PathPattern::Any)),
    };
    pattern.and_then(alone).map_err(|message| (setting, message))
}

/// A pattern that requests can have: judged alone, because all routes together end at the first error.
fn alone(path: PathPattern) -> Result<PathPattern, String> {
    let (hosts, methods, headers, query) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let table = RouteTable::new(vec![RouteMatch { hosts, path: path.clone(), methods, headers, query }]);
    match table {
        Err(RouteError::Pattern { error, .. }) => Err(error.to_string()),
        _ => Ok(path),
    }
}

fn protocol(config: &config::Protocol) -> Option<HeaderValue> {
    // What has been read is a token.
    HeaderValue::from_str(config.as_str()).ok()
}

fn predicate(config: &config::Predicate) -> Predicate {
    match config {
        config::Predicate::Is(value) => Predicate::Equals(value.clone()),
        config::Predicate::Present(wanted) => Predicate::Present(*wanted),
        config::Predicate::Regex(pattern) => Predicate::Regex(pattern.0.clone()),
    }
}

/// Nothing asked for is fine; something asked for must be there.
pub(super) fn all_or_nothing<T>(part: Option<Option<T>>) -> Option<Option<T>> {
    match part {
        None => Some(None),
        Some(part) => part.map(Some),
    }
}
