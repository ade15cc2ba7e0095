//! The bounds that the tables of plugins set.

use crate::Known::{self, Bites};
use crate::{BUDGETS, CAPABILITIES};

const MODULES: &str = "tests/tests/guests.rs";
const RATES: &str = "tests/tests/rate_limit.rs";
const JWT: &str = "plugins/builtin/src/jwt/tests.rs";
const KEYS: &str = "plugins/builtin/src/jwt/tests/rotation.rs";
const TOKENS: &str = "tests/tests/jwt.rs";

/// By their path in the schema.
pub(crate) const CONFIGURED: &[(&str, Known)] = &[
    ("body_limit.request", Bites(BUDGETS, "bodies_are_bounded_both_ways")),
    ("body_limit.response", Bites(BUDGETS, "bodies_are_bounded_both_ways")),
    ("cors.max_age", Bites(BUDGETS, "a_preflight_holds_for_its_time")),
    ("ext_authz.cache.ttl", Bites(BUDGETS, "an_answer_that_is_kept_is_asked_for_again_after_its_time")),
    ("ext_authz.timeout", Bites(BUDGETS, "a_plugin_that_waits_is_not_waited_for_longer_than_its_timeout")),
    ("jwt.issuers.leeway", Bites(JWT, "claims_hold_by_time_audience_and_what_is_required")),
    ("jwt.issuers.keys.discovery.absent", Bites(KEYS, "a_key_that_was_looked_for_is_absent_for_its_time")),
    (
        "jwt.issuers.keys.discovery.refresh",
        Bites(KEYS, "keys_are_fetched_ahead_and_used_for_a_while_when_they_cannot_be"),
    ),
    (
        "jwt.issuers.keys.discovery.stale",
        Bites(KEYS, "keys_are_fetched_ahead_and_used_for_a_while_when_they_cannot_be"),
    ),
    (
        "jwt.issuers.keys.discovery.timeout",
        Bites(TOKENS, "an_issuers_answer_is_waited_for_and_read_up_to_a_bound"),
    ),
    (
        "jwt.issuers.keys.discovery.wait",
        Bites(KEYS, "who_comes_shortly_before_the_window_passes_waits_for_it"),
    ),
    (
        "jwt.issuers.keys.discovery.window",
        Bites(KEYS, "invented_keys_cause_one_fetch_per_window_and_are_not_told_from_new_ones_meanwhile"),
    ),
    ("jwt.issuers.keys.url.absent", Bites(KEYS, "a_key_that_was_looked_for_is_absent_for_its_time")),
    (
        "jwt.issuers.keys.url.refresh",
        Bites(KEYS, "keys_are_fetched_ahead_and_used_for_a_while_when_they_cannot_be"),
    ),
    (
        "jwt.issuers.keys.url.stale",
        Bites(KEYS, "keys_are_fetched_ahead_and_used_for_a_while_when_they_cannot_be"),
    ),
    ("jwt.issuers.keys.url.timeout", Bites(TOKENS, "an_issuers_answer_is_waited_for_and_read_up_to_a_bound")),
    ("jwt.issuers.keys.url.wait", Bites(KEYS, "who_comes_shortly_before_the_window_passes_waits_for_it")),
    (
        "jwt.issuers.keys.url.window",
        Bites(KEYS, "invented_keys_cause_one_fetch_per_window_and_are_not_told_from_new_ones_meanwhile"),
    ),
    (
        "jwt.max_token",
        Bites("plugins/builtin/src/jwt/tests/attacks.rs", "a_token_is_as_long_as_allowed_and_no_longer"),
    ),
    ("json_schema.limit", Bites(BUDGETS, "a_document_is_bounded_in_length_and_depth")),
    ("json_schema.max_depth", Bites(BUDGETS, "a_document_is_bounded_in_length_and_depth")),
    ("mask.limit", Bites(BUDGETS, "a_body_that_is_masked_whole_has_a_limit")),
    ("mask.max_match", Bites(BUDGETS, "a_match_is_found_whole_up_to_its_configured_length")),
    (
        "rate_limit.ipv6_prefix",
        Bites(RATES, "behind_a_trusted_proxy_a_client_is_whom_it_names_and_else_nobody_can_choose"),
    ),
    (
        "rate_limit.limits.token_bucket.burst",
        Bites(RATES, "beyond_the_burst_clients_are_told_when_to_come_back"),
    ),
    ("rate_limit.limits.token_bucket.rate", Bites(RATES, "tokens_come_back_at_their_rate")),
    ("rate_limit.max_keys", Bites(RATES, "a_flood_of_keys_forgets_nobody_and_is_limited_as_a_whole")),
    ("rhai.body_limit", Bites(BUDGETS, "a_script_gets_bodies_up_to_its_limit")),
    ("rhai.grants.cache.entries", Bites(CAPABILITIES, "each_number_of_a_grant_bites")),
    ("rhai.grants.http.calls", Bites(CAPABILITIES, "bounds_bite")),
    ("rhai.grants.http.max_body", Bites(CAPABILITIES, "each_number_of_a_grant_bites")),
    ("rhai.grants.http.timeout", Bites(CAPABILITIES, "each_number_of_a_grant_bites")),
    ("rhai.grants.rate_limit.burst", Bites(CAPABILITIES, "each_number_of_a_grant_bites")),
    ("rhai.grants.rate_limit.rate", Bites(CAPABILITIES, "each_number_of_a_grant_bites")),
    ("rhai.limits.array", Bites(BUDGETS, "every_limit_of_a_script_bites")),
    ("rhai.limits.depth", Bites(BUDGETS, "every_limit_of_a_script_bites")),
    ("rhai.limits.map", Bites(BUDGETS, "every_limit_of_a_script_bites")),
    ("rhai.limits.operations", Bites(BUDGETS, "every_limit_of_a_script_bites")),
    ("rhai.limits.string", Bites(BUDGETS, "every_limit_of_a_script_bites")),
    ("rhai.limits.time", Bites(BUDGETS, "every_limit_of_a_script_bites")),
    (
        "security_headers.hsts.max_age",
        Bites("plugins/builtin/src/security_headers.rs", "tls_is_asked_for_over_tls_alone"),
    ),
    ("sign.expires", Bites(BUDGETS, "a_signature_bounds_the_body_and_its_own_life")),
    ("sign.limit", Bites(BUDGETS, "a_signature_bounds_the_body_and_its_own_life")),
    ("wasm.body_limit", Bites(BUDGETS, "a_module_gets_bodies_up_to_its_limit")),
    ("wasm.cpu", Bites(BUDGETS, "the_memory_and_the_time_of_a_module_are_what_its_configuration_says")),
    ("wasm.grants.cache.entries", Bites(MODULES, "floods_of_capabilities_end_at_their_bounds")),
    ("wasm.grants.http.calls", Bites(MODULES, "floods_of_capabilities_end_at_their_bounds")),
    ("wasm.grants.http.max_body", Bites(MODULES, "each_number_of_a_grant_bites")),
    ("wasm.grants.http.timeout", Bites(MODULES, "each_number_of_a_grant_bites")),
    ("wasm.grants.rate_limit.burst", Bites(MODULES, "each_number_of_a_grant_bites")),
    ("wasm.grants.rate_limit.rate", Bites(MODULES, "each_number_of_a_grant_bites")),
    ("wasm.isolation.reuse", Bites(BUDGETS, "an_instance_serves_as_many_exchanges_as_allowed")),
    ("wasm.memory", Bites(BUDGETS, "the_memory_and_the_time_of_a_module_are_what_its_configuration_says")),
];
