//! Every limit has a test in which it bites. What can be configured is read from the program's own schema, what
//! is built in from the sources; each is to be found here with the test that sees it bite, or with
//! the reason why there is none.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use portcullis_tests::{repository, run};
use serde_json::Value;

/// What is known of a limit.
#[derive(Clone, Copy)]
enum Known {
    /// The test that sees it bite: its file and its name.
    Bites(&'static str, &'static str),
    /// Nothing that could bite: why.
    Not(&'static str),
}

use Known::{Bites, Not};

#[path = "bounds/elsewhere.rs"]
mod elsewhere;
#[path = "bounds/plugins.rs"]
mod plugins;

const ABUSE: &str = "tests/tests/abuse.rs";
const DEPLOY: &str = "tests/tests/deploy.rs";
const CAPABILITIES: &str = "tests/tests/capabilities.rs";
const CEILING: &str = "plugin-sdk/native/src/ceiling.rs";
const LIMITS: &str = "tests/tests/limits.rs";
const SMUGGLING: &str = "tests/tests/smuggling.rs";
const UPSTREAMS: &str = "tests/tests/upstreams.rs";
const HTTP2: &str = "tests/tests/http2_upstream.rs";
const DISCOVERY: &str = "tests/tests/discovery.rs";
const TRANSPORT: &str = "core/proxy/src/upstream/transport.rs";
const TRANSPORTS: &str = "tests/tests/transports.rs";
const QUARANTINE: &str = "tests/tests/quarantine.rs";
const RECORDS: &str = "tests/tests/records.rs";
const REPLAY: &str = "tests/tests/replay.rs";
const RECORD: &str = "core/proxy/src/record/tests.rs";
const RESILIENCE: &str = "tests/tests/resilience.rs";
const OVERLOAD: &str = "tests/tests/overload.rs";
const ADAPTIVE: &str = "core/proxy/src/upstream/adaptive.rs";
const BREAKER: &str = "core/proxy/src/upstream/breaker.rs";
const BALANCE: &str = "core/proxy/src/upstream/balance/tests.rs";
const ENDPOINT: &str = "core/proxy/src/upstream/endpoint.rs";
const HEALTH: &str = "core/control/src/health.rs";
const BUDGETS: &str = "tests/tests/budgets.rs";
const CSRF: &str = "plugins/builtin/src/csrf/tests.rs";
const UPGRADES: &str = "tests/tests/upgrades/main.rs";
const PROXYING: &str = "tests/tests/proxying.rs";
const ATTEMPTS: &str = "tests/tests/attempts.rs";
const TRAFFIC: &str = "tests/tests/traffic.rs";

/// The numbers, times and sizes of the configuration, by their path in the schema.
const CONFIGURED: &[(&str, Known)] = &[
    ("drain", Bites("tests/tests/operation.rs", "a_drain_ends_at_its_time")),
    ("records.file.passed", Bites(RECORDS, "a_file_has_what_was_refused_and_a_share_of_the_rest")),
    ("records.passed", Bites(RECORDS, "no_more_are_remembered_than_the_configuration_says")),
    ("records.refused", Bites(RECORDS, "no_more_are_remembered_than_the_configuration_says")),
    ("reload.max_flips", Bites(REPLAY, "a_reload_that_changes_too_much_is_refused")),
    ("reload.timeout", Bites("tests/tests/policy_tests.rs", "tests_have_a_time_to_end_in")),
    ("replay.max_body", Bites(REPLAY, "what_is_recorded_is_bounded_and_redacted")),
    (
        "replay.max_bytes",
        Bites("core/gateway/src/sinks.rs", "a_bounded_file_and_the_one_before_it_have_no_more_than_that"),
    ),
    ("replay.percent", Bites(REPLAY, "what_is_recorded_is_bounded_and_redacted")),
    ("limits.body", Bites(PROXYING, "a_body_whose_length_was_not_said_is_limited_too")),
    ("limits.exchanges", Bites(OVERLOAD, "no_more_exchanges_are_under_way_than_allowed")),
    ("limits.waiting_scripts", Bites(CAPABILITIES, "so_many_scripts_wait_and_no_more")),
    ("limits.whole_bodies", Bites(LIMITS, "whole_bodies_share_a_budget")),
    ("policies.grants.cache.entries", Bites(CEILING, "each_grant_has_its_ceiling")),
    ("policies.grants.http.calls", Bites(CEILING, "each_grant_has_its_ceiling")),
    ("policies.grants.http.max_body", Bites(CEILING, "each_grant_has_its_ceiling")),
    ("policies.grants.http.timeout", Bites(CEILING, "each_grant_has_its_ceiling")),
    (
        "store.timeout",
        Bites("tests/tests/store.rs", "a_redis_that_stands_still_holds_nobody_up_for_longer_than_its_time"),
    ),
    (
        "listeners.http2.max_streams",
        Bites("tests/tests/protocols.rs", "streams_beyond_the_limit_are_refused"),
    ),
    ("listeners.limits.body_timeout", Bites(LIMITS, "a_body_that_stops_is_a_408")),
    (
        "listeners.limits.connections",
        Bites(LIMITS, "connections_that_come_and_go_are_counted_right_over_all_workers"),
    ),
    (
        "listeners.limits.connections_per_client",
        Bites(ABUSE, "a_client_has_no_more_connections_than_its_budget_over_all_workers"),
    ),
    (
        "listeners.limits.handshakes_per_client",
        Bites(ABUSE, "a_client_begins_no_more_tls_handshakes_than_its_budget"),
    ),
    ("listeners.limits.header_bytes", Bites(PROXYING, "limits_of_heads_and_bodies_bite_at_their_value")),
    ("listeners.limits.header_count", Bites(LIMITS, "limits_of_heads_hold_over_http2")),
    ("listeners.limits.header_timeout", Bites(PROXYING, "a_head_that_takes_too_long_is_a_408")),
    ("listeners.limits.idle_timeout", Bites(LIMITS, "a_kept_connection_without_requests_is_closed")),
    ("listeners.limits.min_rate", Bites(ABUSE, "a_body_that_trickles_is_a_408_unless_that_is_allowed")),
    (
        "listeners.limits.tcp_keepalive",
        Bites(TRANSPORTS, "the_system_asks_who_says_nothing_whether_it_is_there_where_that_is_wanted"),
    ),
    ("listeners.limits.write_timeout", Bites(LIMITS, "a_client_that_takes_nothing_is_given_up")),
    ("listeners.redirect_https.port", Not("a port")),
    ("routes.mirror.body", Bites(TRAFFIC, "a_body_that_streams_is_copied_up_to_its_limit")),
    ("routes.mirror.max_requests", Bites(TRAFFIC, "a_shadow_that_is_behind_or_gone_costs_nothing")),
    ("routes.mirror.share", Bites(TRAFFIC, "a_share_of_the_requests_is_copied")),
    ("routes.timeout", Bites(ATTEMPTS, "a_route_has_a_time_of_its_own")),
    ("routes.upstream.split.weight", Bites(TRAFFIC, "requests_are_spread_as_the_weights_say")),
    (
        "plugins.on_error.quarantine.failures",
        Bites(QUARANTINE, "a_plugin_that_keeps_failing_is_not_called_until_tries_go_well"),
    ),
    (
        "plugins.on_error.quarantine.first",
        Bites(QUARANTINE, "each_failed_try_makes_the_rest_longer_up_to_the_longest"),
    ),
    (
        "plugins.on_error.quarantine.longest",
        Bites(QUARANTINE, "each_failed_try_makes_the_rest_longer_up_to_the_longest"),
    ),
    (
        "plugins.on_error.quarantine.within",
        Bites(QUARANTINE, "failures_that_are_far_apart_put_nothing_into_quarantine"),
    ),
    ("plugins.percent", Bites("tests/tests/shadow.rs", "a_percentage_is_one_of_clients")),
    ("plugins.timeout", Bites(BUDGETS, "a_plugin_that_waits_is_not_waited_for_longer_than_its_timeout")),
    (
        "upstreams.adaptive.min",
        Bites(ADAPTIVE, "what_an_upstream_needs_is_learned_anew_with_few_requests_under_way"),
    ),
    (
        "upstreams.adaptive.tolerance",
        Bites(ADAPTIVE, "a_limit_settles_where_the_upstream_takes_as_much_longer_as_is_tolerated"),
    ),
    (
        "upstreams.breaker.error_rate",
        Bites(BREAKER, "a_circuit_opens_when_enough_requests_fail_and_enough_were_made"),
    ),
    (
        "upstreams.breaker.min_requests",
        Bites(BREAKER, "a_circuit_opens_when_enough_requests_fail_and_enough_were_made"),
    ),
    ("upstreams.breaker.probes", Bites(BREAKER, "a_few_requests_try_whether_the_upstream_is_back")),
    ("upstreams.breaker.time", Bites(OVERLOAD, "an_upstream_that_fails_gets_a_rest_and_comes_back")),
    ("upstreams.breaker.window", Bites(BREAKER, "failures_of_another_window_are_forgotten")),
    (
        "upstreams.eject.error_rate",
        Bites(BALANCE, "an_endpoint_that_fails_often_is_ejected_though_not_in_a_row"),
    ),
    (
        "upstreams.eject.latency_factor",
        Bites(BALANCE, "an_endpoint_that_is_much_slower_than_the_others_is_ejected"),
    ),
    (
        "upstreams.eject.min_requests",
        Bites(BALANCE, "an_endpoint_that_fails_often_is_ejected_though_not_in_a_row"),
    ),
    (
        "upstreams.eject.window",
        Bites(
            "core/proxy/src/upstream/window.rs",
            "a_window_begins_anew_when_it_is_over_and_says_what_it_held",
        ),
    ),
    (
        "upstreams.eject.failures",
        Bites(RESILIENCE, "failures_in_a_row_eject_an_endpoint_and_a_reload_does_not_bring_it_back"),
    ),
    ("upstreams.dns.max_ttl", Bites(DISCOVERY, "records_hold_between_the_shortest_and_the_longest_time")),
    ("upstreams.dns.min_ttl", Bites(DISCOVERY, "records_hold_between_the_shortest_and_the_longest_time")),
    ("upstreams.dns.port", Not("a port")),
    ("upstreams.dns.timeout", Bites(DISCOVERY, "the_last_good_answer_stays_while_there_is_no_other")),
    ("upstreams.eject.max_ejected", Bites(BALANCE, "no_more_than_a_share_of_the_endpoints_is_ejected")),
    ("upstreams.eject.max_time", Bites(ENDPOINT, "ejections_in_a_row_grow_up_to_the_longest")),
    ("upstreams.eject.time", Bites(RESILIENCE, "an_ejected_endpoint_is_tried_again_after_its_time")),
    (
        "upstreams.endpoints.priority",
        Bites(RESILIENCE, "an_endpoint_of_the_next_priority_waits_until_it_is_needed"),
    ),
    ("upstreams.endpoints.weight", Bites("core/config/src/forms.rs", "endpoints_are_http_addresses")),
    ("upstreams.health.healthy", Bites(HEALTH, "an_opinion_changes_after_so_many_results_in_a_row")),
    ("upstreams.health.interval", Bites(RESILIENCE, "checks_come_at_their_interval")),
    ("upstreams.health.port", Not("a port")),
    ("upstreams.health.timeout", Bites(RESILIENCE, "a_check_has_its_time")),
    ("upstreams.health.unhealthy", Bites(HEALTH, "an_opinion_changes_after_so_many_results_in_a_row")),
    ("upstreams.hedge.after", Bites(RESILIENCE, "a_request_that_takes_long_is_sent_elsewhere_too")),
    ("upstreams.max_connection_age", Bites(UPSTREAMS, "a_connection_gets_no_more_requests_beyond_its_age")),
    (
        "upstreams.tcp_keepalive",
        Bites(TRANSPORTS, "the_system_asks_who_says_nothing_whether_it_is_there_where_that_is_wanted"),
    ),
    ("upstreams.max_pending", Bites(OVERLOAD, "requests_wait_for_others_to_end_as_many_as_may_and_as_long")),
    ("upstreams.max_requests", Bites(RESILIENCE, "no_more_requests_are_under_way_than_allowed")),
    ("upstreams.min_healthy", Bites(RESILIENCE, "an_endpoint_of_the_next_priority_waits_until_it_is_needed")),
    ("upstreams.retries.attempts", Bites(RESILIENCE, "as_many_attempts_are_made_as_is_said")),
    (
        "upstreams.retries.backoff",
        Bites(RESILIENCE, "retries_wait_unless_another_endpoint_can_be_tried_at_once"),
    ),
    ("upstreams.retries.budget.min", Bites(RESILIENCE, "retries_have_a_budget")),
    (
        "upstreams.retries.budget.share",
        Bites("core/proxy/src/upstream/retry.rs", "retries_are_a_share_of_what_is_under_way_or_the_minimum"),
    ),
    ("upstreams.retries.per_try_timeout", Bites(RESILIENCE, "an_attempt_and_all_attempts_have_their_time")),
    ("upstreams.retries.timeout", Bites(RESILIENCE, "an_attempt_and_all_attempts_have_their_time")),
    ("upstreams.slow_start", Bites(ENDPOINT, "a_share_grows_from_a_tenth_to_the_whole")),
    ("upstreams.max_idle", Bites(UPSTREAMS, "no_more_idle_connections_are_kept_than_allowed")),
    ("upstreams.retries", Bites(UPSTREAMS, "what_may_be_repeated_is_repeated_so_often")),
    ("upstreams.timeouts.body", Bites(UPSTREAMS, "a_response_that_stops_breaks_off")),
    ("upstreams.timeouts.connect", Bites(UPSTREAMS, "a_connection_that_does_not_come_about_is_a_504")),
    ("upstreams.timeouts.idle", Bites(UPSTREAMS, "an_unused_connection_is_closed")),
    (
        "upstreams.timeouts.pending",
        Bites(OVERLOAD, "requests_wait_for_others_to_end_as_many_as_may_and_as_long"),
    ),
    ("upstreams.timeouts.response", Bites(PROXYING, "a_slow_origin_is_a_504")),
    ("upstreams.timeouts.total", Bites(ATTEMPTS, "a_request_has_its_time_to_the_end_of_its_response")),
    ("upstreams.timeouts.tunnel", Bites(UPGRADES, "a_tunnel_through_which_nothing_passes_is_closed")),
    ("workers", Bites("core/config/src/load/tests.rs", "what_contradicts_is_refused")),
];

const FRAMES: &str = "core/proxy/src/http2/frames.rs";
const FRAMING: &str = "core/proxy/src/upstream/http1/tests.rs";
const VERDICTS: &str = "core/proxy/src/http1/tests/verdicts.rs";

/// The numbers and times that are constants of the data plane.
const BUILT_IN: &[(&str, Known)] = &[
    ("admit.rs CELLS", Not("memory that does not grow; who shares a place has the budget of both")),
    ("admit.rs QUIET", Bites(ABUSE, "a_client_has_no_more_connections_than_its_budget_over_all_workers")),
    ("admit.rs SHARDS", Not("a number of locks")),
    ("body.rs SLICE", Not("how much is handed over at once")),
    ("client.rs BEGIN", Bites("core/proxy/tests/data_plane.rs", "silent_connections_do_not_hold_up_a_drain")),
    ("grpc.rs DAY", Bites("core/proxy/src/grpc.rs", "a_time_limit_is_read_of_calls_and_told")),
    ("head.rs HEADER_OVERHEAD", Not("what a header counts beyond its bytes")),
    ("http1/chunked.rs MAX_EXTENSION", Bites(VERDICTS, "chunked_bodies")),
    ("http1/chunked.rs MAX_EXTENSIONS", Bites(VERDICTS, "chunked_bodies")),
    ("http1/chunked.rs MAX_TRAILERS", Bites(VERDICTS, "chunked_bodies")),
    ("http1/head.rs IN_HOST", Not("a class of bytes")),
    ("http1/head.rs IN_TARGET", Not("a class of bytes")),
    ("http1/fuzz.rs HOUR", Not("of the properties, which wait for nothing")),
    (
        "http1/head.rs MAX_NAME",
        Bites(VERDICTS, "what_the_types_of_a_head_could_not_hold_is_refused_whatever_the_limits"),
    ),
    (
        "http1/head.rs MAX_TARGET",
        Bites(VERDICTS, "what_the_types_of_a_head_could_not_hold_is_refused_whatever_the_limits"),
    ),
    ("http1/head.rs TOKEN", Not("a class of bytes")),
    ("http1/head.rs USUAL_FIELDS", Not("a guess, to grow less often")),
    ("http1/outbox.rs COPIED", Not("what is copied rather than pointed at")),
    (
        "http1/outbox.rs GATHERED",
        Bites("core/proxy/src/http1/tests.rs", "no_more_is_gathered_than_is_written_at_once"),
    ),
    (
        "http1/outbox.rs PIECES",
        Bites("core/proxy/src/http1/tests.rs", "no_more_is_gathered_than_is_written_at_once"),
    ),
    ("http1/response.rs HEADER", Not("a guess, to grow less often")),
    ("http1/response.rs LINES", Not("a guess, to grow less often")),
    ("http1/wire.rs MIN_READ", Not("how much is read at once; what is not read waits in the socket")),
    ("http1/wire.rs MAX_READ", Not("how much is read at once; what is not read waits in the socket")),
    ("http2/walk.rs CODE", Not("of a reset's code")),
    ("http2/walk.rs CONTINUATION", Not("a type of frame")),
    ("http2/walk.rs DATA", Not("a type of frame")),
    ("http2/walk.rs END_HEADERS", Not("a flag")),
    ("http2/walk.rs END_STREAM", Not("a flag")),
    ("http2/frames.rs ENHANCE_YOUR_CALM", Not("a code")),
    ("http2/frames.rs FLOW_CONTROL_ERROR", Not("a code")),
    ("http2/frames.rs GOAWAY", Not("a type of frame")),
    ("http2/walk.rs HEADERS", Not("a type of frame")),
    ("http2/walk.rs LENGTH", Not("of a frame's head")),
    ("http2/frames.rs MAX_AHEAD", Bites(ABUSE, "frames_that_ask_for_nothing_end_the_connection")),
    ("http2/frames.rs MAX_RESETS", Bites(ABUSE, "streams_taken_back_one_by_one_end_the_connection")),
    ("http2/walk.rs PROTOCOL_ERROR", Not("a code")),
    ("http2/frames.rs PER_SECOND", Bites(FRAMES, "frames_for_nothing_are_bounded_and_use_brings_more")),
    ("http2/frames.rs PER_USE", Bites(FRAMES, "frames_for_nothing_are_bounded_and_use_brings_more")),
    ("http2/walk.rs RST_STREAM", Not("a type of frame")),
    ("http2/frames.rs TURN", Not("how often others get their turn")),
    (
        "http2/malformed.rs MAX_BLOCK",
        Bites(SMUGGLING, "fields_for_which_a_head_alone_has_no_room_are_left_out"),
    ),
    ("http2/malformed.rs NO_ERROR", Not("a code")),
    (
        "http2/mod.rs LOCAL_RESETS",
        Bites(ABUSE, "streams_that_the_client_has_reset_by_the_gateway_end_the_connection"),
    ),
    ("http2/mod.rs MAX_LOOK", Not("how often a clock is looked at")),
    ("http2/mod.rs MIN_LOOK", Not("how often a clock is looked at")),
    (
        "http2/mod.rs PARTING",
        Bites("core/proxy/tests/adversity.rs", "a_mute_http2_client_loses_its_connection"),
    ),
    ("http2/mod.rs PENDING_RESETS", Bites(ABUSE, "streams_taken_back_as_they_begin_end_the_connection")),
    ("http2/mod.rs SEND_BUFFER", Bites(ABUSE, "responses_that_wait_for_a_client_hold_little_memory")),
    (
        "http2/mod.rs CONNECTION_WINDOW",
        Bites(LIMITS, "http2_uploads_that_nobody_takes_hold_so_much_of_a_connection_and_no_more"),
    ),
    ("http2/mod.rs STREAM_WINDOW", Bites(LIMITS, "an_http2_upload_that_nobody_takes_ends_at_its_window")),
    ("linger.rs GRACE", Bites("core/proxy/src/linger.rs", "shutdown_waits_for_the_client_but_not_forever")),
    ("chain.rs MAX_ERROR", Bites("core/proxy/src/chain/tests.rs", "a_failure_is_recorded_in_a_few_words")),
    (
        "metrics.rs MAX_SHADOW_CLIENTS",
        Bites("core/proxy/src/metrics/tests.rs", "what_would_be_refused_is_told_apart_up_to_a_number"),
    ),
    (
        "metrics.rs MAX_SHADOW_REASONS",
        Bites("core/proxy/src/metrics/tests.rs", "what_would_be_refused_is_told_apart_up_to_a_number"),
    ),
    (
        "quarantine.rs PROBES",
        Bites("core/proxy/src/quarantine.rs", "one_at_a_time_tries_it_and_a_few_bring_it_back"),
    ),
    ("quarantine.rs WELL", Not("a number that stands for none")),
    ("record.rs AT_A_TIME", Not("how long a lock is held")),
    ("record.rs MAX_STEPS", Bites(RECORD, "what_is_too_long_is_cut_off")),
    ("record.rs MAX_TEXT", Bites(RECORD, "what_is_too_long_is_cut_off")),
    (
        "logs.rs MAX_WAITING",
        Bites("core/proxy/tests/faults.rs", "exchanges_beyond_the_log_queue_are_counted_and_forgotten"),
    ),
    ("upstream/adaptive.rs DRAINED", Bites(ADAPTIVE, "learning_is_given_up_where_requests_do_not_end")),
    (
        "upstream/adaptive.rs LEARN",
        Bites(ADAPTIVE, "what_an_upstream_needs_is_learned_anew_with_few_requests_under_way"),
    ),
    ("upstream/adaptive.rs MIN_ANSWERS", Not("how many answers are thought over at once")),
    ("upstream/adaptive.rs PATIENCE", Bites(ADAPTIVE, "learning_is_given_up_where_requests_do_not_end")),
    ("upstream/adaptive.rs STEP", Not("how often answers are thought over")),
    (
        "upstream/adaptive.rs UNLOADED",
        Bites(ADAPTIVE, "what_an_upstream_needs_is_learned_anew_with_few_requests_under_way"),
    ),
    ("proxy_protocol.rs FIXED", Not("the format's")),
    (
        "proxy_protocol.rs MAX_HEADER",
        Bites(TRANSPORTS, "a_listener_behind_proxies_takes_nobody_else_and_nothing_without_a_header"),
    ),
    (
        "proxy_protocol.rs MAX_LINE",
        Bites(TRANSPORTS, "a_listener_behind_proxies_takes_nobody_else_and_nothing_without_a_header"),
    ),
    ("proxy_protocol.rs PEEKED", Not("how much is looked at at once")),
    ("tunnel.rs PIECE", Bites(UPGRADES, "a_side_that_reads_nothing_is_not_written_to_without_end")),
    (
        "upstream/balance.rs BOUND_QUARTERS",
        Bites(BALANCE, "a_hash_goes_past_an_endpoint_that_is_much_busier_than_the_average"),
    ),
    ("upstream/balance.rs BUCKET_BITS", Not("how finely hashes are shared out")),
    ("upstream/breaker.rs CLOSED", Not("a state")),
    ("upstream/breaker.rs HALF_OPEN", Not("a state")),
    ("upstream/breaker.rs OPEN", Not("a state")),
    (
        "upstream/deadline.rs MAX_DIGITS",
        Bites(
            "core/proxy/src/upstream/deadline.rs",
            "a_header_is_read_and_told_in_the_form_that_its_name_says",
        ),
    ),
    ("upstream/endpoint.rs EJECTED", Not("a bit")),
    ("upstream/endpoint.rs FIRST_SHARE", Bites(ENDPOINT, "a_share_grows_from_a_tenth_to_the_whole")),
    ("upstream/endpoint.rs PROBE_PAUSE", Bites(ENDPOINT, "one_request_at_a_time_tries_whether_it_is_back")),
    ("upstream/endpoint.rs SLOW", Not("a bit")),
    ("upstream/endpoint.rs UNHEALTHY", Not("a bit")),
    ("upstream/endpoint.rs WHOLE_SHARE", Not("a unit")),
    ("upstream/hedge.rs STEP", Not("how fast an estimate follows")),
    ("upstream/hedge.rs UP", Not("how fast an estimate follows")),
    ("upstream/http1.rs MAX_HEAD", Bites(UPSTREAMS, "a_response_with_too_long_a_head_is_a_502")),
    (
        "upstream/http1.rs GATHERED",
        Bites(
            "core/proxy/src/http1/fuzz.rs",
            "small_chunks_leave_together_and_no_more_of_them_than_is_gathered",
        ),
    ),
    ("upstream/http1.rs SMALL", Not("what is copied rather than pointed at")),
    ("upstream/http1.rs KEPT_TEXT", Not("memory kept for the next request")),
    ("upstream/http1/request.rs LINES", Not("a guess, to grow less often")),
    ("upstream/http1/request.rs HEADER", Not("a guess, to grow less often")),
    ("upstream/http1/response.rs MAX_HEADERS", Bites(UPSTREAMS, "a_response_with_too_many_headers_is_a_502")),
    (
        "upstream/http1/response.rs MAX_CHUNK_LINE",
        Bites(FRAMING, "what_two_readers_could_take_differently_is_refused"),
    ),
    (
        "upstream/http1/response.rs MAX_TRAILERS",
        Bites(FRAMING, "what_two_readers_could_take_differently_is_refused"),
    ),
    (
        "upstream/http1/response.rs MAX_TRAILER_FIELDS",
        Bites(FRAMING, "what_two_readers_could_take_differently_is_refused"),
    ),
    ("upstream/http2.rs KEPT", Bites(HTTP2, "what_the_endpoint_has_not_looked_at_is_repeated")),
    ("upstream/http2.rs SLICE", Not("how much is asked for at once")),
    ("upstream/http2.rs SMALL", Not("what is copied rather than pointed at")),
    (
        "upstream/http2.rs GATHERED",
        Not("how much is copied at once; what is not waits in the stream's window"),
    ),
    (
        "upstream/http2/connection.rs CONNECTION_WINDOW",
        Bites(HTTP2, "transfers_that_stall_do_not_stall_others"),
    ),
    (
        "upstream/http2/connection.rs MAX_OPENED",
        Bites(HTTP2, "connections_without_room_are_opened_so_often_and_no_more"),
    ),
    ("upstream/http2/connection.rs MAX_STREAMS", Bites(HTTP2, "requests_beyond_a_connection_open_another")),
    (
        "upstream/http2/connection.rs PING_PATIENCE",
        Bites(HTTP2, "an_endpoint_that_is_silent_is_a_504_and_asked_whether_it_is_there"),
    ),
    (
        "upstream/http2/connection.rs SILENCE",
        Bites(HTTP2, "a_connection_that_is_silent_gets_no_more_requests_however_short_their_time"),
    ),
    (
        "upstream/http2/connection.rs SMALL_PIECES",
        Bites(HTTP2, "small_pieces_that_nobody_takes_are_bounded_and_do_not_end_the_connection_of_others"),
    ),
    (
        "upstream/http2/connection.rs TUNNEL_SILENCE",
        Bites(
            "tests/tests/upgrades/websockets.rs",
            "a_tunnel_ends_when_the_server_behind_its_http2_connection_says_nothing_any_more",
        ),
    ),
    ("upstream/http2/connection.rs UNTOLD", Not("a number that stands for none")),
    (
        "upstream/http2/connection.rs STREAM_WINDOW",
        Bites(HTTP2, "a_response_that_nobody_takes_ends_at_its_window"),
    ),
    (
        "mirror.rs MAX_ANSWER",
        Bites(TRAFFIC, "a_connection_is_used_again_after_an_answer_unless_that_is_too_long"),
    ),
    ("upstream/transport.rs KEPT", Bites(TRANSPORT, "the_addresses_of_a_name_are_kept_for_a_short_while")),
    ("upstream/pool.rs REAP_INTERVAL", Not("how often a clock is looked at")),
    (
        "upstream/retry.rs MAX_PAUSE",
        Bites("core/proxy/src/upstream/retry.rs", "pauses_are_lots_that_grow_up_to_ten_times_the_first"),
    ),
    (
        "upstream/retry.rs MAX_STALE",
        Bites(
            "core/proxy/src/upstream/retry.rs",
            "a_connection_that_was_closed_costs_one_more_attempt_over_a_new_one_and_no_retry",
        ),
    ),
    ("upstream/slots.rs REQUEST", Not("a unit")),
    ("upstream/slots.rs UNANSWERED", Not("a unit")),
    (
        "worker.rs ACCEPT_PAUSE",
        Bites(DEPLOY, "without_descriptors_nobody_new_is_served_and_everybody_once_there_are_some"),
    ),
    ("socket.rs BACKLOG", Not("the kernel's")),
    (
        "worker.rs LAST_LOGS",
        Bites(
            "core/proxy/tests/faults.rs",
            "an_exchange_that_stays_in_its_log_holds_up_the_end_for_a_short_while_only",
        ),
    ),
];

/// Holds a table against what there is, both ways, and each test against its file.
#[track_caller]
fn compare(what: &str, found: &BTreeSet<String>, table: &[(&str, Known)]) {
    let known: BTreeSet<String> = table.iter().map(|(name, _)| (*name).to_owned()).collect();
    let missing: Vec<_> = found.difference(&known).collect();
    assert!(
        missing.is_empty(),
        "{what} without a test in which it bites, or without a line here: {missing:#?}"
    );
    let gone: Vec<_> = known.difference(found).collect();
    assert!(gone.is_empty(), "{what} that is no more: {gone:#?}");
    for (name, known) in table {
        match known {
            Bites(file, test) => {
                let source = fs::read_to_string(repository().join(file)).unwrap();
                assert!(is_test(&source, test), "{name}: {file} has no test `{test}`");
            }
            Not(reason) => assert!(!reason.is_empty(), "{name} lacks a reason"),
        }
    }
}

/// Whether a function of this name has the attribute of a test.
fn is_test(source: &str, name: &str) -> bool {
    let Some((before, _)) = source.split_once(&format!("fn {name}(")) else { return false };
    let Some((above, _)) = before.rsplit_once('\n') else { return false };
    let above = above.lines().rev().map(str::trim);
    let mut attributes = above.take_while(|line| line.starts_with("#[") || line.starts_with("///"));
    attributes.any(|line| line == "#[test]" || line.starts_with("#[tokio::test"))
}

#[test]
fn only_a_function_with_the_attribute_is_a_test() {
    let source = "#[test]\nfn one() {}\nfn two() {}\n    #[tokio::test(start_paused = true)]\n    /// That.\n    #[allow(a)]\n    async fn three() {}\n";
    assert!(is_test(source, "one") && is_test(source, "three"));
    assert!(!is_test(source, "two") && !is_test(source, "four"));
}

#[test]
fn every_configured_limit_bites_in_a_test() {
    let output = run(&["schema"]);
    let schema: Value = serde_json::from_str(&output.out).unwrap();
    let mut found = BTreeSet::new();
    collect(&schema, &schema, "", &mut Vec::new(), &mut found);
    for (name, definition) in schema["$defs"].as_object().unwrap() {
        if let Some(kind) = name.strip_prefix("plugin.") {
            collect(&schema, definition, kind, &mut vec![name.clone()], &mut found);
        }
    }
    compare("a limit of the configuration", &found, &[CONFIGURED, plugins::CONFIGURED].concat());
}

/// The paths of all values that are a number, a time or a size. A plugin's own table is looked at by itself.
fn collect(schema: &Value, node: &Value, path: &str, above: &mut Vec<String>, found: &mut BTreeSet<String>) {
    if !node.is_object() {
        return;
    }
    if is_limit(node) {
        // What every plugin has, it has in every list of plugins.
        let begin = path.find("plugins.").unwrap_or(0);
        found.insert(path[begin..].to_owned());
    }
    if let Some(reference) = node["$ref"].as_str() {
        let name = reference.rsplit('/').next().unwrap().to_owned();
        if name.starts_with("plugin.") || above.contains(&name) {
            return;
        }
        above.push(name);
        let target = schema.pointer(reference.trim_start_matches('#')).unwrap();
        collect(schema, target, path, above, found);
        above.pop();
    }
    for choice in ["oneOf", "anyOf", "allOf"].iter().filter_map(|key| node[key].as_array()).flatten() {
        collect(schema, choice, path, above, found);
    }
    for inside in ["items", "additionalProperties"] {
        collect(schema, &node[inside], path, above, found);
    }
    for (key, property) in node["properties"].as_object().into_iter().flatten() {
        let dot = if path.is_empty() { "" } else { "." };
        collect(schema, property, &format!("{path}{dot}{key}"), above, found);
    }
}

fn is_limit(node: &Value) -> bool {
    let is_number = |name: &Value| name == "integer" || name == "number";
    let has_unit = |pattern: &str| ["ms|", "KiB", "%", "(s|"].iter().any(|unit| pattern.contains(unit));
    // A status code is bounded by its meaning.
    let is_status = node["minimum"].as_u64() >= Some(100) || node["enum"].is_array();
    let number =
        is_number(&node["type"]) || node["type"].as_array().is_some_and(|types| types.iter().any(is_number));
    (number && !is_status) || node["pattern"].as_str().is_some_and(has_unit)
}

#[test]
fn every_built_in_bound_of_the_data_plane_bites_in_a_test() {
    let mut found = BTreeSet::new();
    constants(&repository().join("core/proxy/src"), "", &mut found);
    compare("a bound of the data plane", &found, BUILT_IN);
}

#[test]
fn every_built_in_bound_elsewhere_bites_in_a_test() {
    let mut found = BTreeSet::new();
    for part in elsewhere::PARTS {
        constants(&repository().join(part).join("src"), &format!("{part}/src/"), &mut found);
    }
    compare("a bound", &found, elsewhere::BUILT_IN);
}

/// The numbers and times among the constants of a directory, as `file NAME`.
fn constants(dir: &Path, prefix: &str, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let name = format!("{prefix}{}", entry.file_name().to_str().unwrap());
        if name.contains("tests") {
            continue;
        }
        if entry.file_type().unwrap().is_dir() {
            constants(&entry.path(), &format!("{name}/"), found);
            continue;
        }
        let source = fs::read_to_string(entry.path()).unwrap();
        let product = source.split("#[cfg(test)]\nmod tests {").next().unwrap();
        for line in product.lines() {
            let Some((_, declared)) = line.split_once("const ") else { continue };
            let Some((constant, rest)) = declared.split_once(": ") else { continue };
            let kind = rest.split([' ', ';']).next().unwrap();
            if ["usize", "u8", "u16", "u32", "u64", "i32", "Duration", "StdDuration"].contains(&kind) {
                found.insert(format!("{name} {constant}"));
            }
        }
    }
}
