// The part of http-wasm's handler ABI that this policy uses; all of it: https://http-wasm.io/http-handler-abi/

@external("http_handler", "get_config")
declare function get_config(buffer: usize, limit: u32): u32;
@external("http_handler", "log")
declare function log(level: i32, message: usize, length: u32): void;
@external("http_handler", "get_header_values")
declare function get_header_values(kind: u32, name: usize, length: u32, buffer: usize, limit: u32): u64;
@external("http_handler", "set_header_value")
declare function set_header_value(kind: u32, name: usize, length: u32, value: usize, size: u32): void;
@external("http_handler", "set_status_code")
declare function set_status_code(status: u32): void;

export enum Message {
  Request,
  Response,
}

enum Level {
  Error = 2,
}

/** The policy's configuration, as text. */
export function config(): string {
  const buffer = new ArrayBuffer(64 << 10);
  const length = get_config(changetype<usize>(buffer), buffer.byteLength);
  return String.UTF8.decodeUnsafe(changetype<usize>(buffer), length);
}

/** The first value of a header, or null. */
export function header(message: Message, name: string): string | null {
  const key = String.UTF8.encode(name);
  let buffer = new ArrayBuffer(1 << 10);
  while (true) {
    const at = changetype<usize>(buffer);
    const counted = get_header_values(message, changetype<usize>(key), key.byteLength, at, buffer.byteLength);
    if (counted >> 32 == 0) return null;
    const length = u32(counted);
    if (length <= u32(buffer.byteLength)) return String.UTF8.decodeUnsafe(at, length, true);
    buffer = new ArrayBuffer(length);
  }
}

export function setHeader(message: Message, name: string, value: string): void {
  const key = String.UTF8.encode(name);
  const text = String.UTF8.encode(value);
  set_header_value(message, changetype<usize>(key), key.byteLength, changetype<usize>(text), text.byteLength);
}

export function setStatus(status: u32): void {
  set_status_code(status);
}

/** What becomes of `throw`: it is logged, and the policy ends. */
export function abort(message: string | null, file: string | null, line: u32, column: u32): void {
  const text = String.UTF8.encode(message ? message : "failed");
  log(Level.Error, changetype<usize>(text), text.byteLength);
  unreachable();
}
