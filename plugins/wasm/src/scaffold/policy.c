// Refuses requests with the header `x-refuse`, and greets the upstream with the others.
//
// `sdk/policy.h` is made from the WIT: what a policy can call, and what it exports.

#include <string.h>

#include "sdk/policy.h"

#define GREETING "\"greeting\":\""

// Where the configuration, JSON without spaces, has the greeting; empty if nowhere.
static policy_string_t greeting(const policy_string_t *config) {
    policy_string_t found = {config->ptr, 0};
    size_t key = strlen(GREETING);
    for (size_t at = 0; at + key <= config->len; at++) {
        if (memcmp(config->ptr + at, GREETING, key) != 0) continue;
        found.ptr = config->ptr + at + key;
        while (found.ptr + found.len < config->ptr + config->len && found.ptr[found.len] != '"') found.len++;
        break;
    }
    return found;
}

// False, with a text in `error`, refuses the load of the policy.
bool exports_portcullis_policy_configuration_configure(policy_string_t *error) {
    policy_string_t config;
    portcullis_policy_host_config(&config);
    bool is_good = config.len <= 2 || greeting(&config).len > 0;
    if (!is_good) policy_string_dup(error, "greeting: not a text that is not empty");
    policy_string_free(&config);
    return is_good;
}

bool exports_portcullis_policy_on_request_on_request(
    exports_portcullis_policy_on_request_verdict_t *verdict, policy_string_t *error) {
    policy_string_t name;
    policy_list_u8_t value;
    policy_string_set(&name, "x-refuse");
    if (portcullis_policy_exchange_header(PORTCULLIS_POLICY_EXCHANGE_MESSAGE_REQUEST, &name, &value)) {
        policy_list_u8_free(&value);
        verdict->tag = PORTCULLIS_POLICY_TYPES_VERDICT_DENY;
        verdict->val.deny.status = 403;
        policy_string_dup(&verdict->val.deny.reason, "SNAKE.refused");
        return true;
    }
    policy_string_t config;
    portcullis_policy_host_config(&config);
    policy_string_t text = greeting(&config);
    if (text.len == 0) policy_string_set(&text, "hello");
    policy_string_set(&name, "x-policy");
    value = (policy_list_u8_t){text.ptr, text.len};
    bool is_set = portcullis_policy_exchange_set_header(
        PORTCULLIS_POLICY_EXCHANGE_MESSAGE_REQUEST, &name, &value, error);
    policy_string_free(&config);
    verdict->tag = PORTCULLIS_POLICY_TYPES_VERDICT_CONTINUE;
    return is_set;
}
