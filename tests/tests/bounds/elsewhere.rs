//! The bounds that are built into the crates beside the data plane.

use crate::Known::{self, Bites, Not};
use crate::{BUDGETS, CSRF, DISCOVERY};

const LOADING: &str = "core/config/src/load/tests.rs";
const LAST_GOOD: &str = "core/control/src/last_good.rs";
const STORE: &str = "tests/tests/store.rs";
const STORES: &str = "core/control/src/store/tests.rs";
const RESOLVER: &str = "core/control/src/resolver.rs";
const UPGRADE: &str = "core/gateway/src/upgrade.rs";
const JSON_SCHEMA: &str = "plugins/builtin/src/json_schema.rs";
const SANDBOX: &str = "plugins/rhai/src/tests/sandbox.rs";
const TEXT: &str = "plugins/rhai/src/host/text.rs";
const STATE: &str = "plugins/wasm/src/tests/state.rs";
const ENGINE: &str = "plugins/wasm/src/engine.rs";
const GUESTS: &str = "plugins/wasm/src/tests.rs";
const MODULES: &str = "tests/tests/guests.rs";
const FILTERS: &str = "plugins/wasm/src/proxy_wasm/tests/handmade.rs";
const HANDLERS: &str = "plugins/wasm/src/http_wasm/tests/handmade.rs";
const SHARED: &str = "plugins/wasm/src/proxy_wasm/shared.rs";

/// The crates beside the data plane.
pub(crate) const PARTS: [&str; 8] = [
    "core/config",
    "core/control",
    "core/gateway",
    "plugin-sdk/guest",
    "plugin-sdk/native",
    "plugins/builtin",
    "plugins/rhai",
    "plugins/wasm",
];

/// The numbers and times that are constants in one of them, by the file.
pub(crate) const BUILT_IN: &[(&str, Known)] = &[
    (
        "core/config/src/check.rs MAX_WEIGHT",
        Bites("core/config/src/traffic.rs", "what_makes_no_sense_is_told"),
    ),
    (
        "core/config/src/check.rs MIN_STICKY_KEY",
        Bites("tests/tests/cases.rs", "broken_inputs_are_shown_where_they_are"),
    ),
    ("core/config/src/check.rs MAX_WORKERS", Bites(LOADING, "what_contradicts_is_refused")),
    (
        "core/config/src/diagnostics.rs SHOWN",
        Bites("core/config/src/diagnostics.rs", "too_many_findings_are_counted"),
    ),
    (
        "core/config/src/diagnostics.rs WIDTH",
        Bites("core/config/src/diagnostics.rs", "long_lines_are_cut_around_the_mark"),
    ),
    ("core/config/src/error.rs READABLE", Not("how a message is written")),
    (
        "core/config/src/forms.rs LARGEST_WEIGHT",
        Bites("core/config/src/forms.rs", "endpoints_are_http_addresses"),
    ),
    ("core/config/src/load.rs MAX_BYTES", Bites(LOADING, "files_that_cannot_be_read_say_why")),
    ("core/config/src/node.rs LONGEST", Not("how a message is written")),
    ("core/config/src/node.rs SHORTEST", Not("how a message is written")),
    (
        "core/config/src/reader.rs MOST_GAPS",
        Bites("core/config/src/reader/tests.rs", "attempts_have_a_bound"),
    ),
    ("core/config/src/values.rs LARGEST", Bites("core/config/src/values/tests.rs", "other_words")),
    ("core/config/src/values.rs LONGEST", Bites("core/config/src/values/tests.rs", "durations_need_a_unit")),
    ("core/config/src/read.rs STORE_TIMEOUT", Not("a default; the setting has its test")),
    ("core/config/src/store.rs REDIS_PORT", Not("a port")),
    (
        "core/config/src/listen.rs LONGEST_SOCKET",
        Bites("core/config/src/listen.rs", "listeners_are_at_addresses_or_paths"),
    ),
    ("core/config/src/yaml.rs MAX_DEPTH", Bites("core/config/src/yaml.rs", "nesting_is_bounded")),
    ("core/config/src/yaml.rs MAX_NODES", Bites("core/config/src/yaml.rs", "alias_bombs_are_bounded")),
    (
        "core/control/src/artifacts.rs CAPACITY",
        Bites("core/control/src/artifacts.rs", "the_oldest_artifacts_make_room"),
    ),
    ("core/control/src/artifacts.rs KEY_LEN", Not("the format's")),
    ("core/control/src/artifacts.rs OTHERS_ANY", Not("bits of permissions")),
    ("core/control/src/artifacts.rs TAG_LEN", Not("the format's")),
    ("core/control/src/build/listeners.rs SOCKET_MODE", Not("bits of permissions")),
    (
        "core/control/src/build/plan.rs LONGEST_CHAIN",
        Bites("core/control/src/build/plan.rs", "a_chain_has_no_more_plugins_than_can_be_numbered"),
    ),
    ("core/control/src/build/plugins.rs TIMEOUT", Not("a default; the setting has its test")),
    ("core/control/src/build/upstreams.rs MARK_BYTES", Not("the length of a name")),
    ("core/control/src/control.rs QUEUE", Not("who asks for a reload waits for room")),
    (
        "core/control/src/dns.rs LARGEST_WEIGHT",
        Bites("core/control/src/dns.rs", "weights_keep_their_proportions_and_stay_small"),
    ),
    (
        "core/control/src/dns.rs MOST_ENDPOINTS",
        Bites(DISCOVERY, "an_answer_too_long_for_a_datagram_is_taken_over_tcp_up_to_a_bound"),
    ),
    ("core/control/src/health.rs LONGEST_STATUS_LINE", Not("what is longer is no status line either")),
    ("core/control/src/health/http2.rs LONGEST_ANSWER", Not("what is longer is no answer either")),
    ("core/control/src/health/http2.rs PREFIX", Not("the format's")),
    ("core/control/src/inputs.rs LARGEST", Bites("core/control/src/inputs.rs", "only_files_are_read")),
    ("core/control/src/inputs.rs WORLD_WRITABLE", Not("bits of permissions")),
    ("core/control/src/last_good.rs FORMAT", Not("the format's")),
    (
        "core/control/src/last_good.rs LARGEST",
        Bites(LAST_GOOD, "a_set_that_is_too_large_is_not_kept_and_the_one_before_stays"),
    ),
    ("core/control/src/last_good.rs SETS", Bites(LAST_GOOD, "the_oldest_sets_make_room")),
    ("core/control/src/offload.rs MAX_THREADS", Not("a number of threads")),
    (
        "core/control/src/offload.rs QUEUE_PER_THREAD",
        Bites("core/control/src/offload.rs", "the_queue_is_bounded_and_what_waits_is_done_in_turn"),
    ),
    (
        "core/control/src/offload.rs SCRIPTS_PER_THREAD",
        Bites("tests/tests/capabilities.rs", "so_many_scripts_wait_and_no_more"),
    ),
    ("core/control/src/private.rs OTHERS_WRITE", Not("bits of permissions")),
    ("core/control/src/private.rs ROOT", Not("a user")),
    (
        "core/control/src/reload.rs ATTEMPTS",
        Bites("core/control/src/reload.rs", "a_file_that_changes_under_a_build_is_built_again"),
    ),
    ("core/control/src/gate.rs SHOWN", Not("how a message is written")),
    ("core/control/src/rehearsal.rs NO_REQUEST", Not("of the command line, about a request of its own")),
    ("core/control/src/rehearsal.rs KEPT", Not("of the command line, about a request of its own")),
    ("core/control/src/store/mod.rs REHEARSED", Not("of the command line, about a request of its own")),
    ("core/control/src/replay.rs MOST", Bites("core/control/src/replay.rs", "the_latest_are_tried")),
    (
        "core/control/src/state.rs YEAR",
        Bites("core/control/src/state.rs", "an_entry_lives_as_long_as_was_said"),
    ),
    ("core/gateway/src/cli/jwt.rs MAX_INPUT", Not("what the person who asks gives it")),
    ("core/gateway/src/cli/test.rs DEPTH", Not("of the command line, about directories of its own")),
    ("core/gateway/src/sinks.rs LOG", Not("permissions")),
    ("core/gateway/src/sinks.rs PRIVATE", Not("permissions")),
    ("plugins/rhai/src/coverage.rs COST", Not("what is not charged")),
    ("core/control/src/store/file.rs BATCH", Not("how much is done at once; the queue has its own bound")),
    ("core/control/src/store/file.rs CACHE", Not("memory for what may be read again")),
    (
        "core/control/src/store/file.rs LIMIT",
        Bites(STORES, "a_full_file_refuses_what_is_new_and_forgets_nothing"),
    ),
    ("core/control/src/store/file.rs OVERHEAD", Not("a unit")),
    (
        "core/control/src/store/file.rs RETRY",
        Bites(STORES, "a_file_that_is_no_store_is_told_and_tried_again"),
    ),
    ("core/control/src/store/file.rs SWEEP", Not("how often a clock is looked at")),
    ("core/control/src/store/file.rs SWEPT", Not("how much is done at once")),
    (
        "core/control/src/store/mod.rs MAX_UNDER_WAY",
        Bites(STORES, "who_waits_is_told_in_time_and_too_many_are_told_at_once"),
    ),
    ("core/control/src/store/redis.rs CONNECT", Not("how long connecting may take, for which nobody waits")),
    (
        "core/control/src/store/redis.rs FIRST_PAUSE",
        Bites(STORE, "a_redis_that_is_killed_is_refused_at_once_and_used_again_when_it_is_back"),
    ),
    (
        "core/control/src/store/redis.rs LONGEST_PAUSE",
        Bites(STORE, "a_redis_that_is_killed_is_refused_at_once_and_used_again_when_it_is_back"),
    ),
    (
        "core/control/src/store/redis.rs PING",
        Bites(STORE, "a_redis_that_is_killed_is_refused_at_once_and_used_again_when_it_is_back"),
    ),
    ("core/control/src/trust.rs STICKY", Not("bits of permissions")),
    ("core/control/src/rehearsal.rs PATIENCE", Not("of the command line, about a request of its own")),
    ("core/control/src/rehearsal.rs RECORD", Not("of the command line, about a request of its own")),
    ("core/control/src/reload.rs LOOK", Not("how often a clock is looked at")),
    ("core/gateway/src/cli/shadow.rs LINES", Not("of the command line, which gives all of it as JSON")),
    ("core/control/src/reload.rs SWEEP", Not("how often a clock is looked at")),
    (
        "core/control/src/resolver.rs LONGEST_DATAGRAM",
        Bites(DISCOVERY, "an_answer_too_long_for_a_datagram_is_taken_over_tcp_up_to_a_bound"),
    ),
    (
        "core/control/src/resolver.rs MOST_DOMAINS",
        Bites(RESOLVER, "the_system_says_whom_to_ask_and_what_short_names_mean"),
    ),
    (
        "core/control/src/resolver.rs MOST_SERVERS",
        Bites(RESOLVER, "the_system_says_whom_to_ask_and_what_short_names_mean"),
    ),
    ("core/control/src/resolver.rs PORT", Not("a port")),
    ("core/control/src/resolver.rs ROUNDS", Not("how often is asked within the time that is set")),
    (
        "core/control/src/state.rs KEPT_UNUSED",
        Bites("core/control/src/state.rs", "state_is_held_ten_minutes_after_its_last_use"),
    ),
    ("core/control/src/watch.rs MAX_LINKS", Bites("core/control/src/watch.rs", "a_ring_of_links_ends")),
    ("core/control/src/watch.rs PATIENCE", Not("a pause")),
    ("core/control/src/watch.rs POLL", Not("a pause")),
    ("core/control/src/watch.rs QUIET", Not("a pause")),
    (
        "core/gateway/src/cli/plugins.rs DEPTH",
        Bites("core/gateway/src/cli/plugins.rs", "a_schema_that_names_itself_ends"),
    ),
    (
        "core/gateway/src/cli/plugins.rs WIDTH",
        Bites("core/gateway/src/cli/plugins.rs", "long_text_is_wrapped_between_words"),
    ),
    (
        "core/gateway/src/admin.rs LISTED",
        Bites("tests/tests/records.rs", "every_refusal_names_one_who_decided"),
    ),
    (
        "core/gateway/src/admin.rs MAX_LISTED",
        Bites("tests/tests/records.rs", "every_refusal_names_one_who_decided"),
    ),
    ("core/gateway/src/cli/interface.rs LARGEST", Not("of the command line, about the gateway's own answer")),
    (
        "core/gateway/src/cli/interface.rs PATIENCE",
        Not("of the command line, about the gateway's own answer"),
    ),
    ("core/gateway/src/demo.rs BIGGEST", Not("of the demo's server")),
    ("core/gateway/src/demo.rs SLOWEST", Not("of the demo's server")),
    (
        "core/gateway/src/pid_file.rs LONGEST",
        Bites("core/gateway/src/pid_file.rs", "another_file_is_not_overwritten"),
    ),
    ("core/gateway/src/quickstart.rs TRIED", Not("how many ports are tried")),
    (
        "core/gateway/src/run.rs FLUSH",
        Bites("tests/tests/limits.rs", "a_log_that_nobody_reads_holds_up_the_end_for_a_short_while_only"),
    ),
    ("core/gateway/src/run.rs LEFT_BEHIND", Not("what is left behind ends with the process")),
    ("core/gateway/src/server.rs AFTER_FAILED_ACCEPT", Not("a pause")),
    (
        "core/gateway/src/server.rs HEAD",
        Bites(
            "core/gateway/src/server.rs",
            "a_head_that_does_not_end_is_not_waited_for_as_long_as_a_connection_may_last",
        ),
    ),
    (
        "core/gateway/src/sinks.rs BYTES",
        Bites("core/gateway/src/sinks.rs", "a_stuck_target_blocks_nobody_and_what_it_drops_is_counted"),
    ),
    ("core/gateway/src/sinks.rs GATHERING", Not("a pause")),
    ("core/gateway/src/sinks.rs KEPT", Not("memory kept for the next lines")),
    ("core/gateway/src/upgrade.rs END", Bites(UPGRADE, "a_new_process_is_not_waited_for_without_end")),
    (
        "core/gateway/src/upgrade.rs LONGEST_REASON",
        Bites(UPGRADE, "a_new_process_is_not_waited_for_without_end"),
    ),
    ("core/gateway/src/upgrade.rs LOOK", Not("how often is looked")),
    ("core/gateway/src/upgrade.rs START", Bites(UPGRADE, "a_new_process_is_not_waited_for_without_end")),
    ("core/gateway/src/upgrade.rs TURN", Bites(UPGRADE, "a_new_process_is_not_waited_for_without_end")),
    (
        "plugin-sdk/native/src/journal.rs MAX_CHANGES",
        Bites("plugin-sdk/native/src/exchange.rs", "changes_are_journalled_by_name_up_to_a_bound"),
    ),
    (
        "plugin-sdk/native/src/exchange.rs MAX_RULE",
        Bites("plugin-sdk/native/src/exchange.rs", "a_rule_has_a_name_of_bounded_length"),
    ),
    (
        "plugin-sdk/native/src/exchange.rs MAX_FACTS",
        Bites(BUDGETS, "an_exchange_holds_so_many_headers_and_facts"),
    ),
    (
        "plugin-sdk/native/src/message.rs MAX_HEADERS",
        Bites(BUDGETS, "an_exchange_holds_so_many_headers_and_facts"),
    ),
    (
        "plugin-sdk/native/src/metrics.rs MAX_SERIES",
        Bites(
            "plugin-sdk/native/src/metrics.rs",
            "combinations_are_bounded_and_what_is_beyond_is_counted_together",
        ),
    ),
    (
        "plugin-sdk/native/src/metrics.rs MAX_VALUE",
        Bites("plugin-sdk/native/src/metrics.rs", "a_long_value_is_cut"),
    ),
    (
        "plugin-sdk/native/src/capabilities.rs MAX_CALLS",
        Bites("plugin-sdk/native/src/capabilities.rs", "bounds_of_grants_are_checked"),
    ),
    (
        "plugin-sdk/native/src/capabilities.rs MAX_COUNTERS",
        Bites("plugin-sdk/native/src/capabilities.rs", "bounds_of_grants_are_checked"),
    ),
    (
        "plugin-sdk/native/src/capabilities.rs MAX_ENTRIES",
        Bites("plugin-sdk/native/src/capabilities.rs", "bounds_of_grants_are_checked"),
    ),
    (
        "plugin-sdk/native/src/capabilities.rs MAX_KEY",
        Bites("plugin-sdk/native/src/capabilities.rs", "a_cache_keeps_what_is_small_enough"),
    ),
    (
        "plugin-sdk/native/src/capabilities.rs MAX_RANDOM",
        Bites("plugin-sdk/native/src/capabilities.rs", "time_is_the_clocks_and_random_bytes_are_bounded"),
    ),
    (
        "plugin-sdk/native/src/capabilities.rs MAX_SENT",
        Bites(
            "plugin-sdk/native/src/capabilities.rs",
            "calls_go_to_upstreams_that_are_named_and_no_more_often_than_granted",
        ),
    ),
    (
        "plugin-sdk/native/src/capabilities.rs MAX_VALUE",
        Bites("plugin-sdk/native/src/capabilities.rs", "a_cache_keeps_what_is_small_enough"),
    ),
    (
        "plugin-sdk/native/src/capabilities.rs MAX_KEYS",
        Bites(
            "plugin-sdk/native/src/rate/tests.rs",
            "a_flood_of_keys_neither_forgets_an_attacker_nor_passes_uncounted",
        ),
    ),
    ("plugin-sdk/native/src/plugin.rs STATE_SCHEMA", Not("a version")),
    (
        "plugin-sdk/native/src/store.rs MAX_STORE_KEY",
        Bites("plugin-sdk/native/src/store.rs", "what_is_out_of_bounds_reaches_no_store"),
    ),
    (
        "plugin-sdk/native/src/store.rs MAX_STORE_LIFETIME",
        Bites("plugin-sdk/native/src/store.rs", "what_is_out_of_bounds_reaches_no_store"),
    ),
    (
        "plugin-sdk/native/src/store.rs MAX_STORE_VALUE",
        Bites("plugin-sdk/native/src/store.rs", "what_is_out_of_bounds_reaches_no_store"),
    ),
    (
        "plugin-sdk/native/src/store.rs MIN_LIFETIME",
        Bites("plugin-sdk/native/src/store.rs", "what_is_out_of_bounds_reaches_no_store"),
    ),
    ("plugin-sdk/native/src/store/memory.rs OVERHEAD", Not("a unit")),
    ("plugin-sdk/native/src/store/memory.rs SHARDS", Not("a number of locks")),
    (
        "plugin-sdk/native/src/store/memory.rs SIZE",
        Bites(
            "plugin-sdk/native/src/store/memory.rs",
            "a_full_store_refuses_what_is_new_and_forgets_nothing",
        ),
    ),
    (
        "plugin-sdk/native/src/store/memory.rs SWEPT",
        Bites("plugin-sdk/native/src/store/memory.rs", "what_is_over_goes_little_by_little"),
    ),
    ("plugin-sdk/native/src/tester.rs STORE", Not("of tests, as large as they need")),
    (
        "plugin-sdk/native/src/rate.rs MAX_TAKES",
        Bites("plugins/builtin/src/rate_limit/tests.rs", "what_is_wrong_is_named_where_it_stands"),
    ),
    ("plugin-sdk/native/src/rate/table.rs FIRST_ROOM", Not("where a table begins to grow")),
    ("plugin-sdk/native/src/rate/table.rs LOOKED_AT", Not("how often is looked for room")),
    ("plugin-sdk/native/src/rate/table.rs SHARDS", Not("a number of locks")),
    (
        "plugin-sdk/native/src/units.rs LONGEST",
        Bites("plugin-sdk/native/src/units.rs", "what_is_no_quantity_is_refused_with_an_example"),
    ),
    ("plugins/builtin/src/access_log.rs KEPT_BUFFER", Not("memory kept for the next line")),
    (
        "plugins/builtin/src/origins.rs MAX_ORIGIN",
        Bites("plugins/builtin/src/cors/tests.rs", "an_origin_that_no_browser_has_is_not_searched"),
    ),
    (
        "plugins/builtin/src/security_headers.rs PRELOAD_SECONDS",
        Bites("plugins/builtin/src/security_headers.rs", "what_cannot_be_is_refused_where_it_stands"),
    ),
    ("plugins/builtin/src/csrf.rs MIN_SECRET", Bites(CSRF, "what_cannot_be_is_refused_where_it_stands")),
    ("plugins/builtin/src/csrf.rs RANDOM", Not("the length of a token")),
    ("plugins/builtin/src/csrf.rs SIGNATURE", Not("the length of a signature")),
    (
        "plugins/builtin/src/ext_authz.rs CACHE_ENTRIES",
        Bites("core/control/src/state.rs", "a_cache_is_bounded"),
    ),
    (
        "plugins/builtin/src/ext_authz.rs MAX_ANSWER",
        Bites(BUDGETS, "an_endless_answer_of_an_external_service_is_its_failure"),
    ),
    (
        "plugins/builtin/src/json_schema.rs AT_ONCE",
        Bites(JSON_SCHEMA, "a_long_body_is_judged_elsewhere_while_the_thread_goes_on"),
    ),
    (
        "plugins/builtin/src/json_schema.rs LARGE_PATTERN",
        Bites(JSON_SCHEMA, "a_large_pattern_is_never_searched_for_on_the_worker"),
    ),
    (
        "plugins/builtin/src/json_schema.rs MAX_DEPTH",
        Bites(JSON_SCHEMA, "a_wrong_schema_is_refused_where_it_is_wrong"),
    ),
    ("plugins/builtin/src/json_schema.rs MAX_PATH", Bites(JSON_SCHEMA, "a_place_that_is_told_is_cut")),
    (
        "plugins/builtin/src/mask.rs AT_ONCE",
        Bites("plugins/builtin/src/mask.rs", "a_long_body_is_masked_elsewhere_while_the_thread_goes_on"),
    ),
    (
        "plugins/builtin/src/mask/json.rs MAX_DEPTH",
        Bites("plugins/builtin/src/mask/json.rs", "depth_is_bounded"),
    ),
    (
        "plugins/builtin/src/mask/patterns.rs MAX_COMPILED",
        Bites("plugins/builtin/src/mask.rs", "what_cannot_be_masked_is_refused_at_build"),
    ),
    ("plugins/builtin/src/mask/stream.rs CONTEXT", Not("what a pattern looks back at")),
    (
        "plugins/builtin/src/api_key.rs MAX_KEY",
        Bites("plugins/builtin/src/api_key/tests.rs", "what_holds_no_key_that_holds_is_refused"),
    ),
    (
        "plugins/builtin/src/api_key/known.rs MIN_SECRET",
        Bites("plugins/builtin/src/api_key/tests.rs", "a_table_that_cannot_be_meant_is_refused"),
    ),
    ("plugins/builtin/src/api_key/known.rs RANDOM", Not("the length of new keys")),
    (
        "plugins/builtin/src/jwt.rs MAX_ISSUERS",
        Bites("plugins/builtin/src/jwt/tests.rs", "a_table_that_cannot_be_meant_is_refused"),
    ),
    (
        "plugins/builtin/src/jwt.rs MAX_TOKEN",
        Bites("plugins/builtin/src/jwt/tests.rs", "a_table_that_cannot_be_meant_is_refused"),
    ),
    ("plugins/builtin/src/jwt.rs REMEMBERED", Not("a cache, which may forget")),
    (
        "plugins/builtin/src/jwt/keys.rs MAX_KEYS",
        Bites("plugins/builtin/src/jwt/tests.rs", "a_table_that_cannot_be_meant_is_refused"),
    ),
    (
        "plugins/builtin/src/jwt/keys.rs MAX_TRIES",
        Bites(
            "plugins/builtin/src/jwt/tests/attacks.rs",
            "a_token_without_a_key_id_is_tried_with_a_few_keys_only",
        ),
    ),
    (
        "plugins/builtin/src/jwt/keys.rs MAX_DEPTH",
        Bites(
            "plugins/builtin/src/jwt/tests/rotation.rs",
            "an_issuer_that_is_away_or_answers_anything_else_makes_no_401",
        ),
    ),
    (
        "plugins/builtin/src/jwt/remote.rs MAX_ANSWER",
        Bites("tests/tests/jwt.rs", "an_issuers_answer_is_waited_for_and_read_up_to_a_bound"),
    ),
    (
        "plugins/builtin/src/jwt/remote.rs MAX_DEPTH",
        Bites(
            "plugins/builtin/src/jwt/tests/rotation.rs",
            "metadata_leads_to_keys_only_if_it_is_the_issuers_own",
        ),
    ),
    (
        "plugins/builtin/src/jwt/remote.rs MAX_WAITING",
        Bites(
            "plugins/builtin/src/jwt/tests/rotation.rs",
            "requests_wait_for_one_fetch_together_and_not_too_many",
        ),
    ),
    ("plugins/builtin/src/jwt/remote.rs MAX_ABSENT", Not("a cache, which may forget")),
    (
        "plugins/builtin/src/jwt/token.rs MAX_DEPTH",
        Bites("plugins/builtin/src/jwt/tests/attacks.rs", "what_could_be_read_in_two_ways_is_no_token"),
    ),
    (
        "plugins/builtin/src/jwt/token.rs MAX_KID",
        Bites("plugins/builtin/src/jwt/tests/attacks.rs", "an_id_of_a_key_is_a_name_and_nothing_else"),
    ),
    (
        "plugins/builtin/src/sign.rs AT_ONCE",
        Bites(
            "plugins/builtin/src/sign/tests.rs",
            "a_long_body_is_hashed_elsewhere_while_the_thread_goes_on",
        ),
    ),
    (
        "plugins/builtin/src/sign/key.rs MIN_SECRET",
        Bites("plugins/builtin/src/sign/tests.rs", "what_cannot_sign_is_refused_at_build"),
    ),
    ("plugins/rhai/src/call.rs BYTES_PER_OPERATION", Bites(SANDBOX, "memory_has_a_bound")),
    ("plugins/rhai/src/call.rs CLOCK_EVERY", Not("how often a clock is looked at")),
    ("plugins/rhai/src/call.rs FIRST_LOOK", Not("how often a clock is looked at")),
    ("plugins/rhai/src/call.rs SLOW", Not("how often a clock is looked at")),
    ("plugins/rhai/src/engine.rs TEXT_PER_OPERATION", Not("a price")),
    ("plugins/rhai/src/host/capabilities.rs CALL", Not("a price")),
    ("plugins/rhai/src/host/capabilities.rs CRYPTO", Not("a price")),
    ("plugins/rhai/src/host/capabilities.rs LOOK_UP", Not("a price")),
    ("plugins/rhai/src/host/text.rs BYTES_PER_OPERATION", Bites(SANDBOX, "memory_has_a_bound")),
    ("plugins/rhai/src/host/text.rs HASH", Not("a price")),
    ("plugins/rhai/src/host/text.rs PATTERNS", Bites(TEXT, "expressions_made_from_requests_do_not_pile_up")),
    (
        "plugins/rhai/src/host/text.rs PATTERN_SIZE",
        Bites(TEXT, "compiling_an_expression_costs_and_has_a_bound"),
    ),
    ("plugins/rhai/src/host/text.rs SEARCHED_PER_OPERATION", Bites(SANDBOX, "memory_has_a_bound")),
    (
        "plugins/rhai/src/limits.rs EXPRESSION_DEPTH",
        Bites(SANDBOX, "deep_expressions_and_recursion_together_fit_a_small_stack"),
    ),
    ("plugins/rhai/src/limits.rs LOG_LINE", Not("how a line is written")),
    ("plugins/rhai/src/limits.rs LOG_LINES", Bites(BUDGETS, "a_script_writes_so_many_lines_about_a_request")),
    (
        "plugins/rhai/src/limits.rs MAX_DEPTH",
        Bites("plugins/rhai/src/limits.rs", "limits_that_would_not_protect_are_refused_by_name"),
    ),
    (
        "plugins/rhai/src/limits.rs MAX_ELEMENTS",
        Bites("plugins/rhai/src/limits.rs", "limits_that_would_not_protect_are_refused_by_name"),
    ),
    ("plugins/rhai/src/limits.rs VARIABLES", Bites(SANDBOX, "variables_have_a_bound")),
    (
        "plugins/rhai/src/load.rs MAX_IMPORTS",
        Bites("plugins/rhai/src/tests/language.rs", "imports_come_from_the_scripts_own_directory"),
    ),
    (
        "plugins/rhai/src/load.rs MAX_RESOLVED",
        Bites("plugins/rhai/src/load.rs", "the_names_that_a_thread_keeps_are_bounded"),
    ),
    ("plugins/rhai/src/value.rs JSON_BYTES_PER_OPERATION", Bites(SANDBOX, "memory_has_a_bound")),
    (
        "plugins/rhai/src/value.rs MAX_NESTING",
        Bites("plugins/rhai/src/value.rs", "nesting_ends_in_an_error_instead_of_the_stack"),
    ),
    ("plugins/wasm/src/engine.rs KEPT_MEMORY", Not("memory that is rewritten instead of given back")),
    ("plugins/wasm/src/engine.rs MAX_TABLE_ELEMENTS", Bites(STATE, "a_table_has_a_bound")),
    ("plugins/wasm/src/engine.rs OVERFLOW", Bites(ENGINE, "instances_are_bounded_and_a_permit_comes_back")),
    ("plugins/wasm/src/engine.rs POOLED", Bites(ENGINE, "instances_are_bounded_and_a_permit_comes_back")),
    ("plugins/wasm/src/engine.rs HASTE", Not("how often is looked")),
    (
        "plugins/wasm/src/engine.rs QUIET",
        Bites(ENGINE, "the_ticker_sleeps_when_nothing_runs_and_wakes_for_a_call"),
    ),
    ("plugins/wasm/src/engine.rs REMINDER", Not("how often is remarked")),
    ("plugins/wasm/src/engine.rs TICK", Not("a unit")),
    ("plugins/wasm/src/engine.rs WATCH", Not("how often is looked")),
    ("plugins/wasm/src/host.rs GRACE", Not("for a guest that was looked at in an unlucky moment")),
    (
        "plugins/wasm/src/host.rs LOG_LINE",
        Bites("plugins/wasm/src/host.rs", "what_a_guest_logs_stays_one_line"),
    ),
    (
        "plugins/wasm/src/host.rs LOG_LINES",
        Bites("plugins/wasm/src/tests/sdk.rs", "a_flood_of_log_lines_ends_at_the_bound"),
    ),
    (
        "plugins/wasm/src/host.rs MAX_HEADER_VALUE",
        Bites("plugins/wasm/src/host.rs", "what_is_no_header_is_refused_with_its_name"),
    ),
    ("plugins/wasm/src/host.rs MAX_JSON", Bites("plugins/wasm/src/host.rs", "statuses_and_json_are_bounded")),
    ("plugins/wasm/src/http_wasm/abi.rs BUFFER_REQUEST", Not("a flag")),
    ("plugins/wasm/src/http_wasm/abi.rs BUFFER_RESPONSE", Not("a flag")),
    ("plugins/wasm/src/http_wasm/abi.rs FEATURES", Not("flags")),
    ("plugins/wasm/src/http_wasm/abi.rs TRAILERS", Not("a flag")),
    (
        "plugins/wasm/src/http_wasm/host.rs MAX_HEADERS",
        Bites(HANDLERS, "an_answer_has_as_many_headers_as_a_message_may_have"),
    ),
    ("plugins/wasm/src/http_wasm/imports.rs MAX_TRAILERS", Bites(HANDLERS, "trailers_are_bounded")),
    (
        "plugins/wasm/src/http_wasm/instance.rs START_TICKS",
        Bites(HANDLERS, "a_module_that_can_not_run_is_a_located_error"),
    ),
    ("plugins/wasm/src/instance.rs MAX_IDLE", Not("instances kept for the next exchanges")),
    (
        "plugins/wasm/src/instance.rs MAX_REASON",
        Bites("plugins/wasm/src/instance.rs", "a_reason_is_a_short_code"),
    ),
    ("plugins/wasm/src/instance.rs SHELVES", Not("a number of locks")),
    ("plugins/wasm/src/wasi2.rs MAX_RANDOM", Bites(MODULES, "what_wasi_gives_is_bounded")),
    ("plugins/wasm/src/wasi2.rs MAX_RESOURCES", Bites(MODULES, "what_wasi_gives_is_bounded")),
    ("plugins/wasm/src/wasi2.rs PRINTED", Bites(MODULES, "what_a_module_prints_is_logged_within_bounds")),
    ("plugins/wasm/src/policy.rs CONFIGURE_TICKS", Bites(STATE, "configure_is_not_waited_for_without_end")),
    ("plugins/wasm/src/policy.rs CPU", Bites(GUESTS, "every_way_out_of_a_call_brings_the_exchange_back")),
    (
        "plugins/wasm/src/policy.rs CONNECTION_TICKS",
        Bites(GUESTS, "on_connection_judges_at_once_and_a_guest_that_holds_the_worker_fails"),
    ),
    (
        "plugins/wasm/src/policy.rs SLOW_START",
        Bites(STATE, "a_slow_start_is_remarked_unless_it_is_done_once"),
    ),
    (
        "plugins/wasm/src/policy.rs TRANSFER",
        Not("of the runtime, above what a guest's memory and its bodies come to"),
    ),
    ("plugins/wasm/src/proxy_wasm/calls.rs DEADLINE_EXCEEDED", Not("a status")),
    (
        "plugins/wasm/src/proxy_wasm/calls.rs MAX_TIME",
        Bites(
            "plugins/wasm/src/proxy_wasm/calls.rs",
            "a_call_has_a_method_a_path_and_a_host_and_ends_in_time",
        ),
    ),
    ("plugins/wasm/src/proxy_wasm/calls.rs UNAVAILABLE", Not("a status")),
    ("plugins/wasm/src/proxy_wasm/calls.rs UNKNOWN", Not("a status")),
    (
        "plugins/wasm/src/proxy_wasm/host.rs MAX_CALLS",
        Bites(FILTERS, "what_a_context_may_keep_and_a_vm_may_call_is_bounded"),
    ),
    ("plugins/wasm/src/proxy_wasm/host.rs MAX_DEFERRED", Bites(FILTERS, "ends_that_are_put_off_are_bounded")),
    (
        "plugins/wasm/src/proxy_wasm/host.rs MAX_PROPERTIES",
        Bites(FILTERS, "what_a_context_may_keep_and_a_vm_may_call_is_bounded"),
    ),
    (
        "plugins/wasm/src/proxy_wasm/host.rs MAX_PROPERTY_BYTES",
        Bites(FILTERS, "what_a_context_may_keep_and_a_vm_may_call_is_bounded"),
    ),
    ("plugins/wasm/src/proxy_wasm/host.rs MIN_TICK", Bites(FILTERS, "ticks_are_not_nearer_than_their_bound")),
    ("plugins/wasm/src/proxy_wasm/host.rs ROOT", Not("a number of a context")),
    ("plugins/wasm/src/proxy_wasm/maps.rs MAX_TRAILERS", Bites(FILTERS, "trailers_of_a_guest_are_bounded")),
    (
        "plugins/wasm/src/proxy_wasm/mod.rs CPU",
        Bites(FILTERS, "a_guest_that_recurses_or_grows_without_end_is_stopped"),
    ),
    (
        "plugins/wasm/src/proxy_wasm/seat.rs FIRST_REST",
        Bites(FILTERS, "a_vm_that_serves_nothing_rests_before_it_is_made_anew"),
    ),
    (
        "plugins/wasm/src/proxy_wasm/seat.rs MAX_REST",
        Bites("plugins/wasm/src/proxy_wasm/seat.rs", "rests_grow_up_to_a_bound"),
    ),
    ("plugins/wasm/src/proxy_wasm/shared.rs MAX_BYTES", Bites(SHARED, "what_is_shared_is_bounded")),
    (
        "plugins/wasm/src/proxy_wasm/shared.rs MAX_ITEMS",
        Bites(SHARED, "queues_give_items_in_order_and_are_bounded"),
    ),
    ("plugins/wasm/src/proxy_wasm/shared.rs MAX_KEYS", Bites(SHARED, "what_is_shared_is_bounded")),
    (
        "plugins/wasm/src/proxy_wasm/shared.rs MAX_QUEUES",
        Bites(SHARED, "queues_give_items_in_order_and_are_bounded"),
    ),
    (
        "plugins/wasm/src/proxy_wasm/vm.rs START_BUDGET",
        Bites(FILTERS, "a_module_that_can_not_run_is_a_located_error"),
    ),
    ("plugins/wasm/src/snapshot.rs GAP", Not("how data is laid out")),
    ("plugins/wasm/src/snapshot.rs MAX_IMAGE", Bites("plugins/wasm/src/snapshot.rs", "an_image_is_bounded")),
    ("plugins/wasm/src/wasi.rs BADF", Not("an error's number")),
    ("plugins/wasm/src/wasi.rs FAULT", Not("an error's number")),
    ("plugins/wasm/src/wasi.rs IO", Not("an error's number")),
    ("plugins/wasm/src/wasi.rs INVAL", Not("an error's number")),
    ("plugins/wasm/src/wasi.rs MAX_PARTS", Bites(FILTERS, "a_module_links_whatever_functions_it_imports")),
    ("plugins/wasm/src/wasi.rs EVENT", Not("the length of a thing")),
    (
        "plugins/wasm/src/wasi.rs MAX_SUBSCRIPTIONS",
        Bites(FILTERS, "a_module_links_whatever_functions_it_imports"),
    ),
    ("plugins/wasm/src/wasi.rs SUBSCRIPTION", Not("the length of a thing")),
    ("plugins/wasm/src/wasi.rs MAX_RANDOM", Bites(FILTERS, "a_module_links_whatever_functions_it_imports")),
    ("plugins/wasm/src/wasi.rs NOSYS", Not("an error's number")),
    ("plugins/wasm/src/wasi.rs NOTSUP", Not("an error's number")),
];
