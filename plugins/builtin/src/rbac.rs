//! `rbac`: lets callers do what their roles allow.
//!
//! ```yaml
//! - rbac:
//!     roles:
//!       reader: { permissions: ["orders:read"] }
//!       editor: { inherits: [reader], permissions: ["orders:write"] }
//!       admin: { permissions: ["*"] }
//!     assign: { ann: [editor] }
//!     role_claims: [realm_access.roles]
//!     rules:
//!       - { path: /health, allow: anyone }
//!       - { methods: [GET], path: "/orders/**", allow: [{ permissions: ["orders:read"] }] }
//!       - { path: "/orders/**", allow: [{ permissions: ["orders:write"] }] }
//!       - name: own-profile
//!         path: /users/{user}/profile
//!         allow: [{ roles: [admin] }, { where: ["path.user == principal.id"] }]
//! ```
//!
//! Put it behind what knows callers (`api_key`, for instance). The first rule that a request fits by route, method and path
//! decides; of its `allow` one condition has to hold, with everything that stands in it. Without a rule a request is refused,
//! unless `otherwise` is `allow`. What the decision rests on stands in the request's record: the rule, and what it needs.
//!
//! A caller has the roles that came with the credentials (a key's, a token's), those that stand in claims (`role_claims`),
//! and those that `assign` and `files` give by the caller's id; a file has a line of JSON for each caller,
//! `{"id": "ann", "roles": ["editor"]}`, `#` begins a comment, and it is watched. A role has the permissions of all roles that
//! it inherits from, and counts as each of them. A permission `orders:*` contains all that begin with `orders:`, and `*` all.
//!
//! A comparison of `where` has two sides, `==`, `!=` or `in` between them: `path.NAME` (a placeholder of the rule's path, else of
//! the route's), `principal.id`, `claims.NAME` (with dots for what lies deeper), `header.NAME`, `query.NAME`, or `'a text'`. A
//! side that is not there makes it fail, whatever stands between them.
//!
//! Reasons: `rbac.denied`, `rbac.anonymous`, `rbac.no_rule` (403).

mod condition;
mod pattern;
mod roles;

use http::header::{HeaderValue, WWW_AUTHENTICATE};
use http::{Method, StatusCode};
use portcullis_plugin::{
    BuildContext, BuildError, Counter, Exchange, Hook, HookName, Needs, Plugin, PluginType, Reply,
};
use schemars::JsonSchema;
use serde::Deserialize;
use std::collections::BTreeMap;

use self::condition::{Condition, ConditionConfig};
use self::pattern::Pattern;
use self::roles::{RoleConfig, Roles};

/// Lets callers do what their roles allow.
pub(crate) struct Rbac {
    roles: Roles,
    rules: Box<[Rule]>,
    otherwise: Otherwise,
    allowed: Box<[Counter]>,
    denied: Box<[Counter]>,
    without_rule: Counter,
}

/// Which roles there are, who has them, and what they are needed for.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// Roles, with what they may. Default: none.
    #[serde(default)]
    roles: BTreeMap<String, RoleConfig>,
    /// Roles that callers have by their ids. Default: none.
    #[serde(default)]
    assign: BTreeMap<String, Vec<String>>,
    /// Files of further callers and their roles. Default: none.
    #[serde(default)]
    files: Vec<String>,
    /// Claims that hold roles, a list or a text of several words; dots for what lies deeper: `realm_access.roles`. Default: none.
    #[serde(default)]
    role_claims: Vec<String>,
    /// Who may do what; the first that a request fits decides.
    rules: Vec<RuleConfig>,
    /// What becomes of requests that no rule fits: `deny` or `allow`. Default: `deny`.
    #[serde(default)]
    otherwise: Otherwise,
}

/// What is done with what no rule speaks of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Otherwise {
    /// It passes.
    Allow,
    /// It is refused.
    #[default]
    Deny,
}

/// Who may do something.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct RuleConfig {
    /// What it is called in records and metrics. Default: its number, `rules[0]`.
    name: Option<String>,
    /// Routes that it is about, by name. Default: any.
    #[serde(default)]
    routes: Vec<String>,
    /// Methods that it is about; with `GET` it is about `HEAD` too. Default: any.
    #[serde(default)]
    methods: Vec<String>,
    /// The path that it is about, as routes have it: `/users/{id}`, `/orders/**`. Default: any.
    path: Option<String>,
    /// Who may: `anyone`, `authenticated`, `nobody`, or conditions of which one has to hold.
    allow: AllowConfig,
}

#[derive(Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected `anyone`, `authenticated`, `nobody` or a list of conditions")]
enum AllowConfig {
    /// A word for all or none.
    Word(Whom),
    /// Conditions.
    One(Vec<ConditionConfig>),
}

/// Whom a rule lets pass without a condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Whom {
    /// Also those of whom nothing is known.
    Anyone,
    /// Whoever is known.
    Authenticated,
    /// Nobody at all.
    Nobody,
}

struct Rule {
    name: Box<str>,
    routes: Box<[String]>,
    methods: Box<[Method]>,
    path: Option<Pattern>,
    allow: Allow,
    /// What stands in records of refusals: the rule, and what it needs.
    needs: Box<str>,
    /// The challenge of a rule that wants scopes.
    challenge: Option<HeaderValue>,
}

enum Allow {
    Whom(Whom),
    One(Box<[Condition]>),
}

/// What becomes of a request.
enum Judgement<'a> {
    Allowed(&'a Rule, usize),
    Denied(&'a Rule, usize),
    NoRule,
}

impl Rule {
    fn build(number: usize, config: RuleConfig) -> Result<Self, BuildError> {
        let at = format!("rules[{number}]");
        let methods = config.methods.iter().enumerate().map(|(index, method)| {
            Method::from_bytes(method.as_bytes()).map_err(|_| {
                BuildError::at(format!("{at}.methods[{index}]"), format!("`{method}` is not a method"))
            })
        });
        let mut methods: Vec<Method> = methods.collect::<Result<_, _>>()?;
        if methods.contains(&Method::GET) && !methods.contains(&Method::HEAD) {
            methods.push(Method::HEAD);
        }
        let path = config.path.as_deref().map(|path| Pattern::parse(&format!("{at}.path"), path));
        let allow = match config.allow {
            AllowConfig::Word(whom) => Allow::Whom(whom),
            AllowConfig::One(conditions) if conditions.is_empty() => {
                return Err(BuildError::at(format!("{at}.allow"), "no condition could hold")
                    .help("write `nobody` if that is meant"));
            }
            AllowConfig::One(conditions) => {
                let build = |(index, condition)| Condition::build(&format!("{at}.allow[{index}]"), condition);
                Allow::One(conditions.into_iter().enumerate().map(build).collect::<Result<_, _>>()?)
            }
        };
        let name = config.name.unwrap_or(at);
        let needs = match &allow {
            Allow::Whom(Whom::Anyone) => format!("{name}: anyone"),
            Allow::Whom(Whom::Authenticated) => format!("{name}: needs a known caller"),
            Allow::Whom(Whom::Nobody) => format!("{name}: nobody may"),
            Allow::One(conditions) => {
                let all: Vec<_> = conditions.iter().map(Condition::to_string).collect();
                format!("{name}: needs {}", all.join(", or "))
            }
        };
        let challenge = match &allow {
            Allow::One(conditions) => conditions.iter().find_map(Condition::challenge),
            Allow::Whom(_) => None,
        };
        Ok(Rule {
            name: name.into(),
            routes: config.routes.into(),
            methods: methods.into(),
            path: path.transpose()?,
            allow,
            needs: needs.into(),
            challenge,
        })
    }

    fn fits(&self, exchange: &Exchange) -> bool {
        let request = exchange.request();
        let is_route = |route: &String| exchange.route() == Some(route);
        (self.methods.is_empty() || self.methods.contains(request.method()))
            && (self.routes.is_empty() || self.routes.iter().any(is_route))
            && self.path.as_ref().is_none_or(|path| path.fits(request.path()))
    }

    /// Whether every request that fits the other rule fits this one.
    fn covers(&self, other: &Rule) -> bool {
        fn all<T: PartialEq>(own: &[T], others: &[T]) -> bool {
            own.is_empty() || !others.is_empty() && others.iter().all(|it| own.contains(it))
        }
        let path = match (&self.path, &other.path) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(own), Some(other)) => own.covers(other),
        };
        path && all(&self.methods, &other.methods) && all(&self.routes, &other.routes)
    }

    fn allows(&self, roles: &Roles, exchange: &Exchange) -> bool {
        match &self.allow {
            Allow::Whom(Whom::Anyone) => true,
            Allow::Whom(Whom::Nobody) => false,
            Allow::Whom(Whom::Authenticated) => exchange.principal().is_some(),
            Allow::One(conditions) => exchange.principal().is_some_and(|principal| {
                let has = roles.of(principal);
                conditions.iter().any(|condition| condition.holds(&has, exchange, self.path.as_ref()))
            }),
        }
    }
}

impl Rbac {
    /// The decision.
    fn judge(&self, exchange: &Exchange) -> Judgement<'_> {
        let Some((at, rule)) = self.rules.iter().enumerate().find(|(_, rule)| rule.fits(exchange)) else {
            return Judgement::NoRule;
        };
        match rule.allows(&self.roles, exchange) {
            true => Judgement::Allowed(rule, at),
            false => Judgement::Denied(rule, at),
        }
    }
}

impl PluginType for Rbac {
    const KIND: &'static str = "rbac";
    const SUMMARY: &'static str = "lets callers do what their roles allow";
    const EXAMPLE: &'static str = "\
- rbac:
    roles:
      reader: { permissions: ['orders:read'] }
      editor: { inherits: [reader], permissions: ['orders:write'] }
      admin: { permissions: ['*'] }
    assign: { ann: [editor] }
    role_claims: [realm_access.roles]
    rules:
      - { path: /health, allow: anyone }
      - { methods: [GET], path: /orders/**, allow: [{ permissions: ['orders:read'] }] }
      - { path: /orders/**, allow: [{ permissions: ['orders:write'] }] }
      - name: own-profile
        path: /users/{user}/profile
        allow: [{ roles: [admin] }, { where: ['path.user == principal.id'] }]
";
    type Config = Config;

    fn build(config: Config, context: &mut BuildContext<'_>) -> Result<Self, BuildError> {
        if config.rules.is_empty() {
            return Err(BuildError::at("rules", "there are no rules").help("say who may do what"));
        }
        let rules = config.rules.into_iter().enumerate().map(|(number, rule)| Rule::build(number, rule));
        let rules: Box<[Rule]> = rules.collect::<Result<_, _>>()?;
        for (number, rule) in rules.iter().enumerate() {
            let before = &rules[..number];
            if let Some(same) = before.iter().find(|other| other.name == rule.name) {
                let message = format!("two rules are called `{}`", same.name);
                return Err(BuildError::at(format!("rules[{number}].name"), message));
            }
            if let Some(first) = before.iter().find(|other| other.covers(rule)) {
                let message =
                    format!("no request comes to this rule: all that fit it fit `{}` before", first.name);
                context.warn(&format!("rules[{number}]"), message);
            }
        }
        let mut roles = Roles::build(config.roles, config.assign, config.role_claims)?;
        for (number, path) in config.files.iter().enumerate() {
            let at = format!("files[{number}]");
            let file = context.data_file(&at, path)?;
            roles.read(&at, &file)?;
        }
        for (number, rule) in rules.iter().enumerate() {
            let Allow::One(conditions) = &rule.allow else { continue };
            for (index, condition) in conditions.iter().enumerate() {
                if let Some(permission) = roles.nobody_has(condition) {
                    let message = format!("no role has the permission `{permission}`");
                    context.warn(&format!("rules[{number}].allow[{index}].permissions"), message);
                }
            }
        }
        let counts = context.counters("decisions", "requests by rule and verdict", ["rule", "verdict"]);
        let count = |verdict| rules.iter().map(|rule| counts.with([&*rule.name, verdict])).collect();
        Ok(Rbac {
            allowed: count("allowed"),
            denied: count("denied"),
            without_rule: counts
                .with(["", if config.otherwise == Otherwise::Allow { "allowed" } else { "denied" }]),
            roles,
            rules,
            otherwise: config.otherwise,
        })
    }
}

impl Plugin for Rbac {
    fn needs(&self) -> Needs {
        Needs::hooks([HookName::OnRequest])
    }

    fn on_request<'a>(&'a self, exchange: &'a mut Exchange) -> Hook<'a> {
        match self.judge(exchange) {
            Judgement::Allowed(rule, at) => {
                self.allowed[at].increment();
                exchange.rests_on(&rule.name);
                Hook::CONTINUE
            }
            Judgement::Denied(rule, at) => {
                self.denied[at].increment();
                exchange.rests_on(&rule.needs);
                let reason = if exchange.principal().is_some() { "rbac.denied" } else { "rbac.anonymous" };
                let mut reply = Reply::deny(StatusCode::FORBIDDEN, reason);
                if let Some(challenge) = &rule.challenge {
                    reply = reply.header(WWW_AUTHENTICATE, challenge.clone());
                }
                Hook::respond(reply)
            }
            Judgement::NoRule => {
                self.without_rule.increment();
                match self.otherwise {
                    Otherwise::Allow => Hook::CONTINUE,
                    Otherwise::Deny => Hook::respond(Reply::deny(StatusCode::FORBIDDEN, "rbac.no_rule")),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
