use portcullis_plugin::{Decision, ExchangeBuilder, PluginTester, Principal, TestedPlugin};
use serde_json::{Value, json};

use super::*;

fn table() -> Value {
    json!({
        "roles": {
            "reader": {"permissions": ["orders:read"]},
            "editor": {"inherits": ["reader"], "permissions": ["orders:write"]},
            "chief": {"inherits": ["editor"]},
            "clerk": {"permissions": ["orders:*"]},
            "admin": {"permissions": ["*"]},
        },
        "assign": {"zoe": ["chief"]},
        "role_claims": ["realm.roles", "groups"],
        "rules": [
            {"name": "health", "path": "/health", "allow": "anyone"},
            {"name": "closed", "path": "/closed/**", "allow": "nobody"},
            {"name": "read", "methods": ["GET"], "path": "/orders/**", "allow": [{"permissions": ["orders:read"]}]},
            {"name": "write", "path": "/orders/**", "allow": [{"permissions": ["orders:write"]}]},
            {"name": "own", "path": "/users/{user}/profile", "allow": [
                {"roles": ["reader", "admin"]}, {"where": ["path.user == principal.id"]},
            ]},
            {"name": "scoped", "path": "/scoped", "allow": [{"scopes": ["a", "b"]}]},
            {"name": "claimed", "path": "/claimed", "allow": [{"claims": {"plan": "gold", "teams": "red"}}]},
            {"name": "known", "routes": ["inner"], "allow": "authenticated"},
        ],
    })
}

fn build(table: Value) -> TestedPlugin {
    PluginTester::new().build::<Rbac>(table).unwrap()
}

fn caller(id: &str, roles: &[&str]) -> Principal {
    let roles = roles.iter().map(|role| (*role).to_owned()).collect();
    Principal { id: id.into(), roles, ..Principal::default() }
}

fn with_claims(claims: Value) -> Principal {
    let Value::Object(claims) = claims else { panic!("a table") };
    Principal { id: "ann".into(), claims, ..Principal::default() }
}

/// Why it is refused, none if it is not; and what that rests on.
fn judged(plugin: &TestedPlugin, request: ExchangeBuilder) -> (Option<String>, String) {
    let mut exchange = request.build();
    let reason = match plugin.on_request(&mut exchange).unwrap() {
        Decision::Continue => None,
        Decision::Respond(reply) => {
            assert_eq!(reply.status, 403);
            reply.reason.map(|reason| reason.into_owned())
        }
        other => panic!("{other:?}"),
    };
    (reason, exchange.rule().unwrap_or_default().to_owned())
}

fn refused(plugin: &TestedPlugin, method: Method, path: &str, caller: Option<Principal>) -> Option<String> {
    let request = ExchangeBuilder::request(method, path);
    let request = caller.into_iter().fold(request, |request, caller| request.principal(caller));
    judged(plugin, request).0
}

#[test]
fn a_role_may_what_it_and_what_it_inherits_permits() {
    let plugin = build(table());
    let may = |method: Method, roles: &[&str]| {
        refused(&plugin, method, "/orders/7", Some(caller("ann", roles))).is_none()
    };
    for (roles, reads, writes) in [
        (&["reader"][..], true, false),
        (&["editor"], true, true),
        (&["chief"], true, true),
        (&["clerk"], true, true),
        (&["admin"], true, true),
        (&["unknown", "reader"], true, false),
        (&["orders:read"], false, false),
        (&[], false, false),
    ] {
        assert_eq!((may(Method::GET, roles), may(Method::DELETE, roles)), (reads, writes), "{roles:?}");
        // What only asks for a head is a reading too.
        assert_eq!(may(Method::HEAD, roles), reads, "{roles:?}");
    }
    // A role counts as those that it inherits from.
    assert_eq!(refused(&plugin, Method::GET, "/users/bob/profile", Some(caller("ann", &["chief"]))), None);
}

#[test]
fn roles_come_from_credentials_claims_and_assignments() {
    let plugin = build(table());
    let may = |caller: Principal| refused(&plugin, Method::PUT, "/orders/7", Some(caller)).is_none();
    assert!(may(caller("zoe", &[])) && !may(caller("zo", &[])));
    assert!(may(with_claims(json!({"realm": {"roles": ["editor", 7]}}))));
    assert!(may(with_claims(json!({"groups": "reader editor"}))));
    assert!(!may(with_claims(json!({"realm": ["editor"], "groups": {"editor": true}}))));
    let file = "# who\n{\"id\": \"max\", \"roles\": [\"editor\"]}\n\n";
    let mut table = table();
    table["files"] = json!(["roles.jsonl"]);
    let plugin = PluginTester::new().file("roles.jsonl", file).build::<Rbac>(table).unwrap();
    assert_eq!(refused(&plugin, Method::PUT, "/orders/7", Some(caller("max", &[]))), None);
}

#[test]
fn the_first_rule_that_fits_decides_and_is_named() {
    let plugin = build(table());
    let asked = |path: &str, caller: Principal| judged(&plugin, ExchangeBuilder::get(path).principal(caller));
    let admin = || caller("ann", &["admin"]);
    assert_eq!(asked("/health", admin()), (None, "health".to_owned()));
    assert_eq!(asked("/closed/x", admin()), (Some("rbac.denied".into()), "closed: nobody may".into()));
    assert_eq!(asked("/orders/7", admin()), (None, "read".to_owned()));
    let (reason, rests) = asked("/users/bob/profile", caller("ann", &["editors"]));
    assert_eq!(
        (reason.as_deref(), &*rests),
        (Some("rbac.denied"), "own: needs role reader or admin, or path.user == principal.id")
    );
    assert_eq!(asked("/elsewhere", admin()), (Some("rbac.no_rule".into()), String::new()));
    let inner = ExchangeBuilder::get("/elsewhere").route("inner", &[]);
    assert_eq!(judged(&plugin, inner.principal(caller("ann", &[]))), (None, "known".to_owned()));
    let mut open = table();
    open["otherwise"] = json!("allow");
    assert_eq!(refused(&build(open), Method::GET, "/elsewhere", None), None);
}

#[test]
fn who_is_not_known_may_only_what_anyone_may() {
    let plugin = build(table());
    assert_eq!(refused(&plugin, Method::GET, "/health", None), None);
    for path in ["/orders/7", "/users/ann/profile", "/scoped", "/claimed"] {
        assert_eq!(refused(&plugin, Method::GET, path, None).as_deref(), Some("rbac.anonymous"), "{path}");
    }
}

#[test]
fn scopes_and_claims_have_to_be_there_all() {
    let plugin = build(table());
    let scoped = |scopes: &[&str]| {
        let scopes = scopes.iter().map(|scope| (*scope).to_owned()).collect();
        let principal = Principal { id: "ann".into(), scopes, ..Principal::default() };
        let mut exchange = ExchangeBuilder::get("/scoped").principal(principal).build();
        match plugin.on_request(&mut exchange).unwrap() {
            Decision::Respond(reply) => Some(reply.headers[WWW_AUTHENTICATE].to_str().unwrap().to_owned()),
            _ => None,
        }
    };
    assert_eq!(scoped(&["b", "a"]), None);
    assert_eq!(scoped(&["a"]).as_deref(), Some("Bearer error=\"insufficient_scope\", scope=\"a b\""));
    let claimed = |claims| refused(&plugin, Method::GET, "/claimed", Some(with_claims(claims))).is_none();
    assert!(claimed(json!({"plan": "gold", "teams": ["blue", "red"]})));
    assert!(!claimed(json!({"plan": "gold"})));
    assert!(!claimed(json!({"plan": "Gold", "teams": "red"})));
}

#[test]
fn what_is_compared_is_what_the_upstream_will_read() {
    let rule =
        |compared: &str| build(json!({"rules": [{"path": "/u/{user}", "allow": [{"where": [compared]}]}]}));
    let holds = |compared: &str, request: ExchangeBuilder, claims: Value| {
        judged(&rule(compared), request.principal(with_claims(claims))).0.is_none()
    };
    let get = ExchangeBuilder::get;
    assert!(holds("path.user == principal.id", get("/u/ann"), json!({})));
    assert!(!holds("path.user == principal.id", get("/u/Ann"), json!({})));
    assert!(holds("path.user != principal.id", get("/u/bob"), json!({})));
    assert!(holds("path.user == claims.mail", get("/u/a%20b"), json!({"mail": "a b"})));
    assert!(holds("path.user == claims.sub.id", get("/u/42"), json!({"sub": {"id": 42}})));
    assert!(!holds("path.user == claims.sub.id", get("/u/42"), json!({"sub": {"id": [42]}})));
    assert!(holds("path.user in claims.all", get("/u/42"), json!({"all": ["a", 42]})));
    assert!(!holds("path.user in claims.all", get("/u/42"), json!({"all": "42"})));
    // What is not there is neither the same nor another.
    for compared in ["path.user == claims.none", "path.user != claims.none", "path.other != 'x'"] {
        assert!(!holds(compared, get("/u/ann"), json!({})), "{compared}");
    }
    assert!(holds("header.x-tenant == 't 1'", get("/u/a").header("x-tenant", "t 1"), json!({})));
    let twice = || get("/u/a").header("x-tenant", "a").header("x-tenant", "b");
    assert!(!holds("header.x-tenant == \"a\"", twice(), json!({})));
    assert!(holds("query.of == principal.id", get("/u/a?of=%61nn"), json!({})));
    assert!(!holds("query.of == principal.id", get("/u/a?of=ann&of=bob"), json!({})));
    let route = get("/u/ann").route("r", &[("tenant", "ann")]);
    assert!(holds("path.tenant == principal.id", route, json!({})));
}

#[test]
fn what_cannot_be_is_refused_where_it_stands() {
    for (path, value, at) in [
        ("/rules", json!([]), "rules"),
        ("/rules/1/name", json!("health"), "rules[1].name"),
        ("/rules/0/path", json!("health"), "rules[0].path"),
        ("/rules/2/methods", json!(["G T"]), "rules[2].methods[0]"),
        ("/rules/2/allow", json!([]), "rules[2].allow"),
        ("/rules/2/allow", json!([{}]), "rules[2].allow[0]"),
        ("/rules/4/allow/1/where", json!(["path.user"]), "rules[4].allow[1].where[0]"),
        ("/rules/4/allow/1/where", json!(["user == principal.id"]), "rules[4].allow[1].where[0]"),
        ("/rules/4/allow/1/where", json!(["'a' in 'b'"]), "rules[4].allow[1].where[0]"),
        ("/roles/editor/inherits", json!(["nobody"]), "roles.editor.inherits[0]"),
        ("/roles/reader", json!({"inherits": ["chief"]}), "roles.chief.inherits"),
        ("/roles/reader/permissions", json!(["a*b"]), "roles.reader.permissions[0]"),
    ] {
        let mut table = table();
        *table.pointer_mut(path).unwrap() = value;
        let error = PluginTester::new().build::<Rbac>(table).err();
        assert_eq!(error.map(|error| error.path).as_deref(), Some(at), "{path}");
    }
    let mut table = table();
    table["files"] = json!(["roles.jsonl"]);
    let mut tester = PluginTester::new().file("roles.jsonl", "\n{\"id\": \"a\", \"role\": []}\n");
    let error = tester.build::<Rbac>(table).err().unwrap();
    let position = error.position.unwrap();
    assert_eq!((&*error.path, position.line), ("files[0]", 2));
}

#[test]
fn a_rule_that_nothing_comes_to_and_a_permission_that_nobody_has_are_remarked_on() {
    let mut tester = PluginTester::new();
    let table = json!({
        "roles": {"reader": {"permissions": ["orders:read"]}},
        "rules": [
            {"methods": ["GET"], "path": "/a/**", "allow": "anyone"},
            {"methods": ["HEAD"], "path": "/a/b", "allow": "nobody"},
            {"path": "/a/b", "allow": [{"permissions": ["orders:raed"]}]},
        ],
    });
    tester.build::<Rbac>(table).unwrap();
    let places: Vec<_> = tester.warnings().iter().map(|warning| &*warning.path).collect();
    assert_eq!(places, ["rules[1]", "rules[2].allow[0].permissions"]);
    assert!(tester.warnings()[0].message.contains("`rules[0]`"));
}

#[test]
fn decisions_are_counted_by_rule() {
    let mut tester = PluginTester::new();
    let plugin = tester.build::<Rbac>(table()).unwrap();
    refused(&plugin, Method::GET, "/health", None);
    refused(&plugin, Method::GET, "/scoped", None);
    refused(&plugin, Method::GET, "/none", None);
    for (rule, verdict) in [("health", "allowed"), ("scoped", "denied"), ("", "denied")] {
        assert_eq!(tester.counted("decisions", &[rule, verdict]), Some(1), "{rule}");
    }
}
