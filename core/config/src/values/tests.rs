use super::*;

fn reason<T: Text + fmt::Debug>(text: &str) -> String {
    T::parse(text).unwrap_err()
}

fn shown<T: Text + fmt::Display>(text: &str) -> String {
    T::parse(text).unwrap().to_string()
}

#[test]
fn durations_need_a_unit() {
    assert_eq!(Duration::parse("500ms").unwrap().0, StdDuration::from_millis(500));
    assert_eq!(shown::<Duration>("90s"), "90s");
    assert_eq!(shown::<Duration>("120s"), "2m");
    assert_eq!(shown::<Duration>("0ms"), "0s");
    assert_eq!(reason::<Duration>("10"), "`10` lacks a unit: write `10s`, `10ms`, `10m`");
    assert_eq!(reason::<Duration>("10 s"), "unknown unit ` s`: known are ms, s, m, h, d");
    assert_eq!(reason::<Duration>("soon"), "expected a duration such as `10s`, found string `soon`");
    assert_eq!(reason::<Duration>("9999999999d"), "a duration of more than ten years");
    assert_eq!(
        reason::<Duration>("99999999999999999999s"),
        "expected a duration such as `10s`, found string `99999999999999999999s`"
    );
}

#[test]
fn sizes_know_binary_and_decimal_units() {
    assert_eq!(ByteSize::parse("64KiB").unwrap().0, 65_536);
    assert_eq!(ByteSize::parse("1GB").unwrap().0, 1_000_000_000);
    assert_eq!(shown::<ByteSize>("1024KiB"), "1MiB");
    assert_eq!(shown::<ByteSize>("1kB"), "1000B");
    assert_eq!(reason::<ByteSize>("64K"), "unknown unit `K`: known are B, kB, MB, GB, KiB, MiB, GiB");
    assert_eq!(reason::<ByteSize>("99999999999GiB"), "a size beyond all memory");
    assert_eq!(SizeLimit::parse("unlimited"), Ok(SizeLimit::Unlimited));
    assert_eq!(
        reason::<SizeLimit>("none"),
        "expected a size such as `10MiB`, or `unlimited`, found string `none`"
    );
}

#[test]
fn networks_are_exact() {
    assert_eq!(shown::<Network>("10.0.0.0/8"), "10.0.0.0/8");
    assert_eq!(shown::<Network>("::1"), "::1/128");
    assert_eq!(shown::<Network>("::ffff:10.0.0.0/104"), "10.0.0.0/8");
    assert_eq!(shown::<Network>("::ffff:0:0/96"), "0.0.0.0/0");
    assert_eq!(shown::<Network>("::ffff:10.0.0.1"), "10.0.0.1/32");
    assert_eq!(shown::<Network>("::/0"), "::/0");
    assert_eq!(
        reason::<Network>("10.1.2.3/8"),
        "`10.1.2.3/8` is an address within a network: write `10.0.0.0/8`"
    );
    assert!(reason::<Network>("10.0.0.0/33").starts_with("expected a network"));
    assert_eq!(shown::<Network>("unix"), "0.0.0.0/32");
}

#[test]
fn host_patterns_are_lowercase_names() {
    assert_eq!(shown::<HostPattern>("API.example.com"), "api.example.com");
    assert_eq!(shown::<HostPattern>("*.example.com"), "*.example.com");
    assert_eq!(shown::<HostPattern>("[::1]"), "[::1]");
    assert_eq!(reason::<HostPattern>("a.com:80"), "`a.com:80` has a port: routes match host names only");
    assert_eq!(
        reason::<HostPattern>("http://a.com"),
        "`http://a.com` is no host name: leave scheme and path out"
    );
    assert!(reason::<HostPattern>("a.*.com").starts_with("`*` may stand only"));
    for bad in ["", "*", "-a.com", "a..com", "ä.de", "a b"] {
        assert!(HostPattern::parse(bad).is_err(), "{bad}");
    }
}

#[test]
fn templates_have_whole_segment_placeholders() {
    let template = PathTemplate::parse("/users/{id}/files/{rest**}").unwrap();
    assert_eq!(template.names().collect::<Vec<_>>(), ["id", "rest"]);
    for good in ["/", "/**", "/a/{b}/c/", "/a//b"] {
        assert!(PathTemplate::parse(good).is_ok(), "{good}");
    }
    assert_eq!(reason::<PathTemplate>("users"), "a path begins with `/`");
    assert_eq!(
        reason::<PathTemplate>("/a/*"),
        "`*` has no meaning here: write `{name}` for one segment, `/**` for the rest"
    );
    assert_eq!(reason::<PathTemplate>("/**/a"), "`**` may only stand at the end");
    assert_eq!(reason::<PathTemplate>("/{a}/{a}"), "`{a}` stands here twice");
    assert!(reason::<PathTemplate>("/x{a}").contains("mixes text and placeholder"));
    assert!(reason::<PathTemplate>("/{}").contains("is no placeholder"));
    assert_eq!(reason::<PathTemplate>("/a?b"), "`?` cannot stand in a path");
}

#[test]
fn other_words() {
    assert_eq!(reason::<Method>("get"), "methods are uppercase: `GET`");
    assert!(Method::parse("PROPFIND").is_ok() && Method::parse("A B").is_err());
    assert_eq!(shown::<HeaderName>("X-Tenant"), "x-tenant");
    assert!(HeaderName::parse("a:b").is_err());
    assert_eq!(shown::<Protocol>("WebSocket"), "websocket");
    assert!(Protocol::parse("name/2").is_ok() && Protocol::parse("a, b").is_err());
    assert!(reason::<Protocol>("h2c").contains("never passed on"));
    assert!(reason::<Address>("localhost:80").starts_with("expected an IP address and port"));
    assert_eq!(reason::<Pattern>("("), "not a regular expression: unclosed group");
    assert_eq!(reason::<Pattern>("(a{1000}){1000}"), "this regular expression is too large");
    assert!(reason::<PathPrefix>("/a/{id}").starts_with("a literal path"));
}
