// Refuses requests with the header `x-refuse`, and greets the upstream with the others.

import * as exchange from "portcullis:policy/exchange@0.1.0";
import * as host from "portcullis:policy/host@0.1.0";

// The engine, QuickJS, has no `TextEncoder`.
const utf8 = (text) => Uint8Array.from(unescape(encodeURIComponent(text)), (byte) => byte.charCodeAt(0));
const greeting = () => JSON.parse(host.config()).greeting ?? "hello";

export const configuration = {
  // What is thrown refuses the load of the policy.
  configure() {
    if (typeof greeting() !== "string") throw "greeting: not text";
  },
};

export const onRequest = {
  onRequest() {
    if (exchange.header("request", "x-refuse") != null) {
      return { tag: "deny", val: { status: 403, reason: "SNAKE.refused" } };
    }
    exchange.setHeader("request", "x-policy", utf8(greeting()));
    return { tag: "continue" };
  },
};
