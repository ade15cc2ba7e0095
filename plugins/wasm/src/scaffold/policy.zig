//! Refuses requests with the header `x-refuse`, and greets the upstream with the others.
//!
//! `sdk/policy.h` is made from the WIT: what a policy can call, and what it exports. The build makes Zig of it.

const std = @import("std");
const c = @import("sdk.zig");

const Config = struct { greeting: []const u8 = "hello" };

/// The configuration, in memory that an instance never gives back: it lives for one exchange.
fn read() !Config {
    var text: c.policy_string_t = undefined;
    c.portcullis_policy_host_config(&text);
    return std.json.parseFromSliceLeaky(Config, std.heap.wasm_allocator, text.ptr[0..text.len], .{});
}

/// False, with a text in `failure`, refuses the load of the policy.
export fn exports_portcullis_policy_configuration_configure(failure: *c.policy_string_t) bool {
    _ = read() catch |reason| {
        c.policy_string_dup(failure, @errorName(reason));
        return false;
    };
    return true;
}

export fn exports_portcullis_policy_on_request_on_request(
    verdict: *c.exports_portcullis_policy_on_request_verdict_t,
    failure: *c.policy_string_t,
) bool {
    const of = c.PORTCULLIS_POLICY_EXCHANGE_MESSAGE_REQUEST;
    var name: c.policy_string_t = undefined;
    var value: c.policy_list_u8_t = undefined;
    c.policy_string_set(&name, "x-refuse");
    if (c.portcullis_policy_exchange_header(of, &name, &value)) {
        verdict.tag = c.PORTCULLIS_POLICY_TYPES_VERDICT_DENY;
        verdict.val.deny.status = 403;
        c.policy_string_dup(&verdict.val.deny.reason, "SNAKE.refused");
        return true;
    }
    const config = read() catch Config{};
    c.policy_string_set(&name, "x-policy");
    value = .{ .ptr = @constCast(config.greeting.ptr), .len = config.greeting.len };
    verdict.tag = c.PORTCULLIS_POLICY_TYPES_VERDICT_CONTINUE;
    return c.portcullis_policy_exchange_set_header(of, &name, &value, failure);
}
