//! The route table: which route a request takes.
//!
//! A route wants a *host*, a *path*, and *predicates* (methods, headers, query parameters). Hosts and paths are places,
//! found by hashing whole hosts and single segments, so that ten thousand routes cost no more than ten; predicates are
//! looked at one after the other, but only those of routes that share a place. The more specific place goes first:
//!
//! 1. Host: exact, then the longest wildcard (`*.a.example` before `*.example`; one label or more stand for the star),
//!    then any.
//! 2. Path: exact; then template, compared segment by segment, where a literal goes before `{x}` and `{x}` before a
//!    rest; then the longest prefix; then any.
//! 3. Among routes of one place, those with more predicates (all methods together count as one) first, then the order
//!    of the config.
//!
//! If no route of a place accepts the request, the next place is tried: first the other paths of the same host, then
//! the next host. If in the end only the method stood in the way somewhere, the answer is 405 with the methods that
//! would have been accepted, otherwise 404.
//!
//! Paths are compared byte by byte in their [normal form](portcullis_plugin::path), case and trailing slash included; captures
//! stay percent-encoded. A look-up allocates nothing, unless a template has more than four captures, an encoded query
//! value meets a regex, or the answer is 405.

mod pattern;
mod predicate;
#[cfg(test)]
mod tests;
mod tree;

use std::collections::HashMap;
use std::error::Error;
use std::fmt;

use http::{HeaderMap, HeaderName, Method};
use smallvec::SmallVec;

pub use self::pattern::{HostPattern, PathPattern, PatternError, Segment, Template};
pub use self::predicate::Predicate;
use self::predicate::query_accepts;
use self::tree::Tree;

/// What a route wants of a request. What is empty is not looked at.
#[derive(Debug, Clone)]
pub struct RouteMatch {
    /// Any of these hosts.
    pub hosts: Vec<HostPattern>,
    /// This path.
    pub path: PathPattern,
    /// Any of these methods.
    pub methods: Vec<Method>,
    /// All of these headers; of a repeated header, one value is enough.
    pub headers: Vec<(HeaderName, Predicate)>,
    /// All of these query parameters, in decoded form; of a repeated one, one value is enough.
    pub query: Vec<(String, Predicate)>,
}

/// Where each captured segment stands in the path: start and end, in the order of the template.
pub type Captures = SmallVec<[(u32, u32); 4]>;

/// What a look-up found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// The route at this position of the table.
    Route {
        /// The position, in the order in which the routes were given.
        index: usize,
        /// What the route's template captured; [`RouteTable::capture_names`] has the names.
        captures: Captures,
    },
    /// Only the method prevented a match.
    MethodNotAllowed {
        /// The methods that would have matched, sorted, each once.
        allow: Vec<Method>,
    },
    /// No route, whatever the method.
    NotFound,
}

/// Why a table cannot be built. Indices are positions in the list of routes given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RouteError {
    /// Both routes want the same, so that the second could never be taken.
    Conflict {
        /// The route that would always win.
        first: usize,
        /// The route that could never be taken.
        second: usize,
    },
    /// The route's host or path pattern can match no request.
    Pattern {
        /// The route.
        index: usize,
        /// What is wrong with its pattern.
        error: PatternError,
    },
}

impl fmt::Display for RouteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RouteError::Conflict { first, second } => {
                write!(f, "route {second} can never be taken: route {first} wants the same")
            }
            RouteError::Pattern { index, error } => write!(f, "route {index} can match nothing: {error}"),
        }
    }
}

impl Error for RouteError {}

/// All routes, ready for look-ups.
#[derive(Debug)]
pub struct RouteTable {
    routes: Vec<Route>,
    exact_hosts: HashMap<Box<str>, Paths>,
    /// By what stands behind `*.`.
    wildcard_hosts: HashMap<Box<str>, Paths>,
    /// No longer suffix is looked up, whatever a client sends.
    longest_wildcard: usize,
    any_host: Paths,
}

#[derive(Debug)]
struct Route {
    methods: Vec<Method>,
    headers: Vec<(HeaderName, Predicate)>,
    query: Vec<(String, Predicate)>,
    capture_names: Vec<Box<str>>,
}

/// The routes of one place, by precedence.
type Candidates = Vec<u32>;

/// The routes of one host.
#[derive(Debug, Default)]
struct Paths {
    exact: HashMap<Box<str>, Candidates>,
    templates: Tree,
    /// A prefix is a template of literals with a rest.
    prefixes: Tree,
    any: Candidates,
}

impl RouteTable {
    /// Builds the table; the first route that could never be taken is an error.
    pub fn new(routes: Vec<RouteMatch>) -> Result<RouteTable, RouteError> {
        let mut table = RouteTable {
            routes: Vec::with_capacity(routes.len()),
            exact_hosts: HashMap::new(),
            wildcard_hosts: HashMap::new(),
            longest_wildcard: 0,
            any_host: Paths::default(),
        };
        for (index, route) in routes.into_iter().enumerate() {
            table.insert(index, route)?;
        }
        table.order()?;
        Ok(table)
    }

    /// Finds the route for a request. `host` is without port, in lower case; `path` in normal form, or `*`.
    pub fn find(
        &self,
        host: &str,
        path: &str,
        method: &Method,
        query: Option<&str>,
        headers: &HeaderMap,
    ) -> Found {
        let mut found = None;
        let mut wrong_method = false;
        let matches_rest = |route: &Route| route.accepts(query, headers);
        self.visit(host, path, &mut |candidates, captures| {
            found = candidates.iter().find_map(|&index| {
                let route = self.routes.get(index as usize)?;
                count_visit();
                if !route.accepts_method(method) {
                    wrong_method = wrong_method || matches_rest(route);
                    return None;
                }
                matches_rest(route).then(|| {
                    let named = captures.get(..route.capture_names.len()).unwrap_or(captures);
                    Found::Route { index: index as usize, captures: SmallVec::from_slice(named) }
                })
            });
            found.is_some()
        });
        match found {
            Some(found) => found,
            None if wrong_method => {
                Found::MethodNotAllowed { allow: self.allowed(host, path, query, headers) }
            }
            None => Found::NotFound,
        }
    }

    /// The names of the captures of the route at `index`.
    pub fn capture_names(&self, index: usize) -> &[Box<str>] {
        self.routes.get(index).map_or(&[], |route| &route.capture_names)
    }

    fn allowed(&self, host: &str, path: &str, query: Option<&str>, headers: &HeaderMap) -> Vec<Method> {
        let mut allow = Vec::new();
        self.visit(host, path, &mut |candidates, _| {
            let routes = candidates.iter().filter_map(|&index| self.routes.get(index as usize));
            for route in routes.filter(|route| route.accepts(query, headers)) {
                allow.extend_from_slice(&route.methods);
            }
            false
        });
        allow.sort_unstable_by(|a, b| a.as_str().cmp(b.as_str()));
        allow.dedup();
        allow
    }

    /// Shows the places that match host and path, by precedence, until `accept` takes one.
    fn visit(&self, host: &str, path: &str, accept: &mut impl FnMut(&[u32], &Captures) -> bool) -> bool {
        // A fully qualified name may end in a dot.
        let host = host.strip_suffix('.').unwrap_or(host);
        if self.exact_hosts.get(host).is_some_and(|paths| paths.visit(path, accept)) {
            return true;
        }
        let mut suffix = host;
        while let Some((_, shorter)) = suffix.split_once('.').filter(|_| self.longest_wildcard > 0) {
            suffix = shorter;
            if suffix.len() > self.longest_wildcard {
                continue;
            }
            count_visit();
            if self.wildcard_hosts.get(suffix).is_some_and(|paths| paths.visit(path, accept)) {
                return true;
            }
        }
        self.any_host.visit(path, accept)
    }

    fn insert(&mut self, index: usize, route: RouteMatch) -> Result<(), RouteError> {
        let RouteMatch { hosts, path, methods, headers, query } = route;
        let pattern_error = |error| RouteError::Pattern { index, error };
        path.check().map_err(pattern_error)?;
        for host in &hosts {
            host.check().map_err(pattern_error)?;
        }
        if hosts.is_empty() {
            self.any_host.insert(index, &path);
        }
        for host in &hosts {
            self.host(host).insert(index, &path);
        }
        let capture_names = path.capture_names();
        self.routes.push(Route { methods, headers, query, capture_names });
        Ok(())
    }

    fn host(&mut self, host: &HostPattern) -> &mut Paths {
        match host {
            HostPattern::Exact(host) => self.exact_hosts.entry(host.as_str().into()).or_default(),
            HostPattern::Wildcard(suffix) => {
                self.longest_wildcard = self.longest_wildcard.max(suffix.len());
                self.wildcard_hosts.entry(suffix.as_str().into()).or_default()
            }
        }
    }

    /// Puts the routes of each place in order of precedence, and finds those that have no chance.
    fn order(&mut self) -> Result<(), RouteError> {
        let routes = &self.routes;
        let mut conflict: Option<(usize, usize)> = None;
        let hosts = self.exact_hosts.values_mut().chain(self.wildcard_hosts.values_mut());
        for paths in hosts.chain([&mut self.any_host]) {
            paths.for_each(&mut |candidates| {
                let weight = |&index: &u32| routes.get(index as usize).map_or(0, Route::weight);
                candidates.sort_by_key(|index| std::cmp::Reverse(weight(index)));
                candidates.dedup();
                if let Some(pair) = first_repeated(routes, candidates) {
                    // Hash maps have no order; the error must.
                    conflict = Some(conflict.map_or(pair, |other| other.min(pair)));
                }
            });
        }
        match conflict {
            Some((second, first)) => Err(RouteError::Conflict { first, second }),
            None => Ok(()),
        }
    }
}

/// The first candidate that wants nothing else than an earlier one, and that earlier one.
fn first_repeated(routes: &[Route], candidates: &[u32]) -> Option<(usize, usize)> {
    if candidates.len() < 2 {
        return None;
    }
    let mut seen = HashMap::new();
    let repeated = candidates.iter().filter_map(|&index| {
        let route = routes.get(index as usize)?;
        let first = *seen.entry(route.wants()).or_insert(index);
        (first != index).then_some((index as usize, first as usize))
    });
    repeated.min()
}

impl Route {
    fn accepts_method(&self, method: &Method) -> bool {
        self.methods.is_empty() || self.methods.contains(method)
    }

    /// Whether everything but the method is as wanted.
    fn accepts(&self, query: Option<&str>, headers: &HeaderMap) -> bool {
        self.headers.iter().all(|(name, predicate)| predicate.accepts_header(name, headers))
            && self.query.iter().all(|(name, predicate)| query_accepts(query, name, predicate))
    }

    fn weight(&self) -> usize {
        usize::from(!self.methods.is_empty()) + self.headers.len() + self.query.len()
    }

    /// The predicates in a form in which equal ones are equal, whatever their order.
    fn wants(&self) -> [Vec<String>; 3] {
        let sorted = |mut wants: Vec<String>| {
            wants.sort_unstable();
            wants.dedup();
            wants
        };
        [
            sorted(self.methods.iter().map(Method::to_string).collect()),
            sorted(self.headers.iter().map(|header| format!("{header:?}")).collect()),
            sorted(self.query.iter().map(|parameter| format!("{parameter:?}")).collect()),
        ]
    }
}

impl Paths {
    fn insert(&mut self, index: usize, path: &PathPattern) {
        let candidates = match path {
            PathPattern::Any => &mut self.any,
            PathPattern::Exact(path) => self.exact.entry(path.as_str().into()).or_default(),
            PathPattern::Prefix(prefix) => self.prefixes.prefix(prefix),
            PathPattern::Template(template) => self.templates.template(template),
        };
        candidates.push(index as u32);
    }

    fn for_each(&mut self, act: &mut impl FnMut(&mut Candidates)) {
        self.exact.values_mut().for_each(&mut *act);
        self.templates.for_each(act);
        self.prefixes.for_each(act);
        act(&mut self.any);
    }

    fn visit(&self, path: &str, accept: &mut impl FnMut(&[u32], &Captures) -> bool) -> bool {
        let nothing = Captures::new();
        count_visit();
        self.exact.get(path).is_some_and(|candidates| accept(candidates, &nothing))
            || self.templates.visit(path, accept)
            || self.prefixes.visit(path, accept)
            || accept(&self.any, &nothing)
    }
}

#[cfg(test)]
thread_local! {
    /// Nodes, places and candidates looked at on this thread, which must not grow with the table.
    static VISITS: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

fn count_visit() {
    #[cfg(test)]
    VISITS.with(|visits| visits.set(visits.get() + 1));
}
