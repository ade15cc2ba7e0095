// Refuses requests with the header `x-refuse`, and greets the upstream with the others.

import { Message, config, header, setHeader, setStatus } from "./host";

// Runs when the policy is loaded; what is thrown refuses the load.
const greeting = config();
if (greeting.length == 0) throw new Error("config: not a greeting");

export function handle_request(): u64 {
  if (header(Message.Request, "x-refuse") !== null) {
    setStatus(403);
    return 0;
  }
  setHeader(Message.Request, "x-policy", greeting);
  return 1;
}

export function handle_response(context: u32, isError: u32): void {}
