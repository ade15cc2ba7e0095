use http::HeaderValue;
use regex::Regex;

use super::*;
use portcullis_plugin::path::normalise;

/// `"host path METHOD,METHOD name=value ?name=value"`; `-` for any host, `=` before an exact path, `^` before a prefix.
fn route(text: &str) -> RouteMatch {
    let mut words = text.split(' ');
    let hosts = words.next().filter(|host| *host != "-").map(|hosts| hosts.split(','));
    let hosts = hosts.into_iter().flatten().map(|host| HostPattern::parse(host).unwrap()).collect();
    let path = match words.next().unwrap().split_at(1) {
        ("-", _) => PathPattern::Any,
        ("=", path) => PathPattern::Exact(path.into()),
        ("^", path) => PathPattern::Prefix(path.into()),
        (slash, path) => PathPattern::template(&[slash, path].concat()).unwrap(),
    };
    let mut route = RouteMatch { hosts, path, methods: vec![], headers: vec![], query: vec![] };
    for word in words {
        match (word.strip_prefix('?').unwrap_or(word).split_once('='), word.starts_with('?')) {
            (None, _) => route.methods = word.split(',').map(|method| method.parse().unwrap()).collect(),
            (Some((name, value)), true) => route.query.push((name.into(), predicate(value))),
            (Some((name, value)), false) => route.headers.push((name.parse().unwrap(), predicate(value))),
        }
    }
    route
}

fn predicate(text: &str) -> Predicate {
    match text {
        "+" => Predicate::Present(true),
        "!" => Predicate::Present(false),
        _ => match text.strip_prefix('~') {
            Some(regex) => Predicate::Regex(Regex::new(regex).unwrap()),
            None => Predicate::Equals(text.into()),
        },
    }
}

fn table(routes: &[&str]) -> RouteTable {
    RouteTable::new(routes.iter().map(|text| route(text)).collect()).unwrap()
}

fn headers(text: &str) -> HeaderMap {
    let pairs = text.split(' ').filter_map(|pair| pair.split_once('='));
    pairs.map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_str(value).unwrap())).collect()
}

/// Looks up `"METHOD host path?query name=value"`, and says `"index capture capture"`, `"405 METHOD"` or `"404"`.
fn find(table: &RouteTable, request: &str) -> String {
    let mut words = request.splitn(4, ' ');
    let method: Method = words.next().unwrap().parse().unwrap();
    let host = words.next().unwrap();
    let target = words.next().unwrap();
    let (path, query) = match target.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (target, None),
    };
    let found = table.find(host, path, &method, query, &headers(words.next().unwrap_or_default()));
    match found {
        Found::Route { index, captures } => {
            let names = table.capture_names(index).iter();
            assert_eq!(names.len(), captures.len());
            names.zip(captures).fold(index.to_string(), |text, (name, (start, end))| {
                format!("{text} {name}={}", &path[start as usize..end as usize])
            })
        }
        Found::MethodNotAllowed { allow } => {
            allow.iter().fold("405".to_owned(), |text, method| format!("{text} {method}"))
        }
        Found::NotFound => "404".to_owned(),
    }
}

#[track_caller]
fn check(routes: &[&str], cases: &[(&str, &str)]) {
    let table = table(routes);
    for (request, expected) in cases {
        assert_eq!(find(&table, request), *expected, "{request}");
    }
}

#[test]
fn hosts_by_precedence() {
    check(
        &["- -", "*.example.com -", "*.b.example.com -", "a.example.com,x.y -", "[::1] -"],
        &[
            ("GET a.example.com /", "3"),
            ("GET x.y /", "3"),
            ("GET a.example.com. /", "3"),
            ("GET c.example.com /", "1"),
            ("GET a.a.example.com /", "1"),
            ("GET a.b.example.com /", "2"),
            ("GET a.a.b.example.com /", "2"),
            ("GET b.example.com /", "1"),
            ("GET example.com /", "0"),
            ("GET badexample.com /", "0"),
            ("GET [::1] /", "4"),
            ("GET com /", "0"),
            ("GET . /", "0"),
        ],
    );
}

#[test]
fn paths_by_precedence() {
    check(
        &[
            "- -",
            "- ^/",
            "- ^/a",
            "- ^/a/b",
            "- /a/**",
            "- /a/{x}/c",
            "- /a/b/{y}",
            "- /a/b/{rest**}",
            "- =/a/b/c",
            "- ^/p/q/",
        ],
        &[
            ("GET h /", "1"),
            ("GET h /z", "1"),
            ("OPTIONS h *", "0"),
            ("GET h /a", "4"),
            ("GET h /a/", "4"),
            ("GET h /ab", "1"),
            ("GET h /a/b/c", "8"),
            ("GET h /a/b/d", "6 y=d"),
            ("GET h /a/z/c", "5 x=z"),
            ("GET h /a/b", "7 rest="),
            ("GET h /a/b/", "7 rest="),
            ("GET h /a/b/c/d", "7 rest=c/d"),
            ("GET h /a/z/d", "4"),
            ("GET h /p", "1"),
            ("GET h /p/q", "9"),
            ("GET h /p/q/", "9"),
            ("GET h /p/q/r", "9"),
            ("GET h /p/qr", "1"),
        ],
    );
}

#[test]
fn templates_backtrack_and_capture() {
    check(
        &[
            "- /{a}/{b}/{c}",
            "- /x/{b}/y",
            "- /x/z",
            "- /users/{id}/",
            "- /{one}/{two}/{three}/{four}/{five}/{six**}",
        ],
        &[
            ("GET h /x/1/y", "1 b=1"),
            ("GET h /x/1/z", "0 a=x b=1 c=z"),
            ("GET h /x/z", "2"),
            ("GET h /x/z/", "404"),
            ("GET h /x//y", "404"),
            ("GET h /users/%C3%A9/", "3 id=%C3%A9"),
            ("GET h /users/1", "404"),
            ("GET h /users/", "404"),
            ("GET h /1/2/3/4/5", "4 one=1 two=2 three=3 four=4 five=5 six="),
            ("GET h /1/2/3/4/5/6/7", "4 one=1 two=2 three=3 four=4 five=5 six=6/7"),
        ],
    );
}

#[test]
fn exact_paths_differ_by_a_trailing_slash_and_case() {
    check(
        &["- =/a", "- =/a/"],
        &[("GET h /a", "0"), ("GET h /a/", "1"), ("GET h /A", "404"), ("GET h /a/b", "404")],
    );
}

#[test]
fn predicates_by_precedence() {
    check(
        &["- -", "- - GET", "- - GET v=1", "- - GET v=1 ?q=1", "- - w=~^a+$", "- - ?p=+", "- - POST u=! t=+"],
        &[
            ("PUT h /", "0"),
            ("GET h /", "1"),
            ("GET h / v=1", "2"),
            ("GET h / v=2", "1"),
            ("GET h / v=2 v=1", "2"),
            ("GET h /?q=1 v=1", "3"),
            ("GET h /?q=2&q=1 v=1", "3"),
            ("GET h /?q=%31 v=1", "3"),
            ("PUT h / w=aaa", "4"),
            ("PUT h / w=aab", "0"),
            ("PUT h /?p", "5"),
            ("PUT h /?a=p&pp=1", "0"),
            ("PUT h /?&&p=", "5"),
            ("POST h / t=1", "6"),
            ("POST h / t=1 u=2", "0"),
        ],
    );
}

#[test]
fn query_parameters_are_decoded_as_forms_are() {
    let table = RouteTable::new(vec![
        RouteMatch { query: vec![("a b".into(), Predicate::Equals("é&+".into()))], ..route("- -") },
        RouteMatch { query: vec![("r".into(), predicate("~^x y$"))], ..route("- -") },
        RouteMatch { query: vec![("s".into(), Predicate::Equals("100%".into()))], ..route("- -") },
    ])
    .unwrap();
    assert_eq!(find(&table, "GET h /?a+b=%C3%a9%26%2B"), "0");
    assert_eq!(find(&table, "GET h /?%61%20b=%C3%A9%26%2b"), "0");
    assert_eq!(find(&table, "GET h /?r=x+y"), "1");
    assert_eq!(find(&table, "GET h /?r=x%20y"), "1");
    assert_eq!(find(&table, "GET h /?r=%FF"), "404");
    assert_eq!(find(&table, "GET h /?s=100%"), "2");
    assert_eq!(find(&table, "GET h /?s=100%2"), "404");
}

#[test]
fn a_place_whose_predicates_fail_is_left_for_the_next() {
    check(
        &[
            "a.h =/x/y v=1",
            "a.h /x/{z} v=2",
            "a.h ^/x v=3",
            "a.h - v=4",
            "*.h =/x/y v=5",
            "- ^/x/y v=6",
            "- - v=+",
        ],
        &[
            ("GET a.h /x/y v=1", "0"),
            ("GET a.h /x/y v=2", "1 z=y"),
            ("GET a.h /x/y v=3", "2"),
            ("GET a.h /x/y v=4", "3"),
            ("GET a.h /x/y v=5", "4"),
            ("GET a.h /x/y v=6", "5"),
            ("GET a.h /x/y v=7", "6"),
            ("GET a.h /x/y", "404"),
        ],
    );
}

#[test]
fn a_wrong_method_is_told_from_a_wrong_path() {
    check(
        &["h =/a GET,HEAD", "h /{x} POST,GET", "h ^/a PUT v=1", "- =/a DELETE", "h ^/b GET"],
        &[
            ("GET h /a", "0"),
            ("POST h /a", "1 x=a"),
            ("DELETE h /a", "3"),
            ("PATCH h /a", "405 DELETE GET HEAD POST"),
            ("PATCH h /a v=1", "405 DELETE GET HEAD POST PUT"),
            ("PATCH h /b/c", "405 GET"),
            ("PATCH h /c/c", "404"),
        ],
    );
}

#[test]
fn routes_that_can_never_be_taken_are_refused() {
    let conflict = |routes: &[&str]| {
        RouteTable::new(routes.iter().map(|text| route(text)).collect()).map(|_| ()).unwrap_err()
    };
    let pair = |first, second| RouteError::Conflict { first, second };
    assert_eq!(conflict(&["- -", "- =/", "- -"]), pair(0, 2));
    assert_eq!(conflict(&["- /a/{x}", "- /a/{y}"]), pair(0, 1));
    assert_eq!(conflict(&["- ^/a", "- ^/a/"]), pair(0, 1));
    assert_eq!(conflict(&["a,b -", "b,c -"]), pair(0, 1));
    assert_eq!(conflict(&["- - GET,POST v=1 w=2", "- - POST,GET w=2 v=1"]), pair(0, 1));
    table(&["- - GET", "- - GET,POST", "- - v=1", "- - ?v=1", "- - v=~1", "- -", "a,a -"]);
    let unmatched = RouteMatch { path: PathPattern::Exact("/a//b".into()), ..route("- -") };
    assert_eq!(
        RouteTable::new(vec![unmatched]).map(|_| ()),
        Err(RouteError::Pattern { index: 0, error: PatternError::NotNormal(Some("/a/b".into())) })
    );
}

#[test]
fn patterns_are_read_strictly() {
    for (template, error) in [
        ("a", PatternError::NotNormal(None)),
        ("/a/../b", PatternError::NotNormal(None)),
        ("//", PatternError::NotNormal(None)),
        ("/a b/{x}", PatternError::NotNormal(None)),
        ("/{x", PatternError::Placeholder),
        ("/a{x}", PatternError::Placeholder),
        ("/{}", PatternError::Placeholder),
        ("/{**}", PatternError::Placeholder),
        ("/{a-b}", PatternError::Placeholder),
        ("/a**", PatternError::Placeholder),
        ("/**/a", PatternError::RestNotLast),
        ("/{r**}/", PatternError::RestNotLast),
        ("/{x}/{x}", PatternError::RepeatedName("x".into())),
        ("/{x}/{x**}", PatternError::RepeatedName("x".into())),
    ] {
        assert_eq!(PathPattern::template(template), Err(error), "{template}");
    }
    for host in ["", "a:80", "a b", "a/", "a.", "[::1]:80"] {
        assert_eq!(HostPattern::parse(host), Err(PatternError::Host), "{host}");
    }
    for host in ["*", "*.", "a.*.b", "*a.b", "*.*.b"] {
        assert_eq!(HostPattern::parse(host), Err(PatternError::Wildcard), "{host}");
    }
    assert_eq!(HostPattern::parse("*.EXAMPLE.com"), Ok(HostPattern::Wildcard("example.com".into())));
    assert_eq!(HostPattern::parse("[::1]"), Ok(HostPattern::Exact("[::1]".into())));
}

/// How much a look-up looked at.
fn work(table: &RouteTable, request: &str) -> usize {
    VISITS.set(0);
    find(table, request);
    VISITS.get()
}

#[test]
fn the_work_does_not_grow_with_the_table() {
    let sized = |count: usize| {
        let kinds = ["=/e#/x", "/t#/{id}/x", "/s/{id}/t#", "^/p#/a", "/r#/{rest**}"];
        let many = (0..count).flat_map(|number| {
            let path = kinds[number % kinds.len()].replace('#', &number.to_string());
            [format!("h{number}.a {path}"), format!("- {path}"), format!("*.w{number}.a {path}")]
        });
        let routes = many.map(|text| route(&text)).collect();
        RouteTable::new(routes).unwrap()
    };
    let (small, large) = (sized(10), sized(10_000));
    for request in [
        "GET h5.a /e5/x",
        "GET h6.a /t6/1/x",
        "GET h7.a /s/1/t7",
        "GET h8.a /p8/a/b",
        "GET h9.a /r9/a/b/c",
        "GET z /e5/x",
        "GET z /t6/1/x",
        "GET z /s/1/t7",
        "GET z /p8/a/b",
        "GET z /r9/a/b/c",
        "GET x.w5.a /e5/x",
        "GET x.w6.a /t6/1/x",
        "GET z /nothing",
        "GET h5.a /nothing/at/all",
    ] {
        assert_eq!(work(&small, request), work(&large, request), "{request}");
        assert!(work(&large, request) < 25, "{request}");
    }
}

#[test]
fn a_long_host_is_not_looked_up_label_by_label() {
    let table = table(&["*.example.com -"]);
    let request = format!("GET {} /", "a.".repeat(10_000));
    assert!(work(&table, &request) < 20);
    let request = format!("GET h /{}", "a/".repeat(10_000));
    assert!(work(&table, &request) < 20);
}

/// Numbers that look random and are the same in every run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as usize % bound
    }

    fn pick<'a>(&mut self, words: &[&'a str]) -> &'a str {
        words[self.below(words.len())]
    }

    fn path(&mut self, words: &[&str], most: usize) -> String {
        let count = 1 + self.below(most);
        (0..count).map(|_| format!("/{}", self.pick(words))).collect()
    }

    fn route(&mut self) -> String {
        let host = self.pick(&["-", "-", "a.b", "b", "*.b", "*.a.b", "c.a.b,b"]);
        let path = match self.below(5) {
            0 => format!("={}", self.path(&["a", "b", "c"], 3)),
            1 => format!("^{}", self.path(&["a", "b", "c"], 3)),
            2 => "-".to_owned(),
            _ => {
                let path =
                    self.path(&["a", "b", "c", "{}", "{}"], 3) + self.pick(&["", "", "/**", "/{r**}", "/"]);
                let names = ["{x}", "{y}", "{z}"];
                names.iter().fold(path, |path, name| path.replacen("{}", name, 1))
            }
        };
        let methods = self.pick(&["", "", " GET", " POST", " GET,PUT"]);
        let header = self.pick(&["", "", "", " v=1", " v=2", " w=+"]);
        let query = self.pick(&["", "", "", " ?q=1"]);
        format!("{host} {path}{methods}{header}{query}")
    }

    fn request(&mut self) -> String {
        let method = self.pick(&["GET", "POST", "PUT"]);
        let host = self.pick(&["a.b", "b", "c.a.b", "d.b", "e"]);
        let path = self.path(&["a", "b", "c", "d"], 4) + self.pick(&["", "", "", "/"]);
        let query = self.pick(&["", "", "?q=1"]);
        let headers = self.pick(&["", " v=1", " v=2", " v=1 w=1"]);
        format!("{method} {host} {path}{query}{headers}")
    }
}

/// One route's wishes compared with a request, without any table: how specific host and path are, if they match.
fn naive_rank(route: &RouteMatch, host: &str, path: &str) -> Option<Vec<usize>> {
    let host_rank = |pattern: &HostPattern| match pattern {
        HostPattern::Exact(wanted) => (wanted == host).then_some(1000),
        HostPattern::Wildcard(suffix) => {
            host.strip_suffix(suffix.as_str())?.ends_with('.').then_some(suffix.len())
        }
    };
    let host = match route.hosts.is_empty() {
        true => 0,
        false => route.hosts.iter().filter_map(host_rank).max()?,
    };
    let mut rank = vec![host];
    rank.extend(naive_path_rank(&route.path, path)?);
    Some(rank)
}

fn naive_path_rank(pattern: &PathPattern, path: &str) -> Option<Vec<usize>> {
    let given: Vec<&str> = path.split('/').skip(1).collect();
    match pattern {
        PathPattern::Any => Some(vec![0]),
        PathPattern::Exact(wanted) => (wanted == path).then(|| vec![3]),
        PathPattern::Prefix(prefix) => {
            let matches = path == prefix || path.starts_with(&format!("{prefix}/"));
            matches.then(|| vec![1, prefix.len()])
        }
        PathPattern::Template(template) => {
            let mut rank = vec![2];
            for (position, segment) in template.segments().iter().enumerate() {
                let given = given.get(position);
                match segment {
                    Segment::Rest(_) => {
                        rank.push(1);
                        return Some(rank);
                    }
                    Segment::Literal(literal) if **literal == **given? => rank.push(3),
                    Segment::Parameter(_) if !given?.is_empty() => rank.push(2),
                    _ => return None,
                }
            }
            // Ending is more specific than a rest that happens to be empty.
            rank.push(2);
            (template.segments().len() == given.len()).then_some(rank)
        }
    }
}

fn naive(routes: &[RouteMatch], request: &str) -> String {
    let words: Vec<&str> = request.splitn(4, ' ').collect();
    let (path, query) =
        words[2].split_once('?').map_or((words[2], None), |(path, query)| (path, Some(query)));
    let headers = headers(words.get(3).unwrap_or(&""));
    let mut best: Option<(Vec<usize>, usize, usize)> = None;
    let mut wrong_method = false;
    for (index, route) in routes.iter().enumerate() {
        let Some(rank) = naive_rank(route, words[1], path) else { continue };
        let accepted = route.headers.iter().all(|(name, predicate)| predicate.accepts_header(name, &headers))
            && route.query.iter().all(|(name, predicate)| query_accepts(query, name, predicate));
        if !accepted {
            continue;
        }
        if !route.methods.is_empty() && !route.methods.iter().any(|method| method.as_str() == words[0]) {
            wrong_method = true;
            continue;
        }
        let weight = usize::from(!route.methods.is_empty()) + route.headers.len() + route.query.len();
        let better = best.as_ref().is_none_or(|(other, heavy, _)| (&rank, weight) > (other, *heavy));
        if better {
            best = Some((rank, weight, index));
        }
    }
    match best {
        Some((_, _, index)) => index.to_string(),
        None if wrong_method => "405".to_owned(),
        None => "404".to_owned(),
    }
}

#[test]
fn the_table_agrees_with_a_naive_matcher() {
    let mut numbers = Numbers(7);
    let mut outcomes = HashMap::new();
    for _ in 0..300 {
        let mut texts = Vec::new();
        for _ in 0..1 + numbers.below(30) {
            texts.push(numbers.route());
            let parsed = texts.iter().map(|text| route(text)).collect();
            if RouteTable::new(parsed).is_err() {
                texts.pop();
            }
        }
        let routes: Vec<RouteMatch> = texts.iter().map(|text| route(text)).collect();
        let table = RouteTable::new(routes.clone()).unwrap();
        for _ in 0..100 {
            let request = numbers.request();
            let found = find(&table, &request);
            let index = found.split(' ').next().unwrap();
            assert_eq!(index, naive(&routes, &request), "{request} in {texts:#?}");
            *outcomes.entry(index.len() < 3).or_insert(0) += 1;
        }
    }
    assert!(outcomes[&true] > 5_000 && outcomes[&false] > 1_000);
}

#[test]
fn what_the_table_holds_is_what_requests_have() {
    let path = normalise("/%61/./b%3a").unwrap();
    assert_eq!(find(&table(&["- =/a/b%3A"]), &format!("GET h {path}")), "0");
}
