// A filter made with a public SDK for AssemblyScript: it adds its configuration to responses, refuses who asks for that,
// and has others wait for the answer of a call.
export * from "@solo-io/proxy-runtime/proxy";
import {
  BaseContext,
  Context,
  Counter,
  FilterHeadersStatusValues,
  GrpcStatusValues,
  HeaderPair,
  LogLevelValues,
  RootContext,
  WasmResultValues,
  log,
  registerRootContext,
  send_local_response,
  stream_context,
} from "@solo-io/proxy-runtime";
import { BufferTypeValues, get_buffer_bytes } from "@solo-io/proxy-runtime/runtime";

function pair(name: string, value: string): HeaderPair {
  return new HeaderPair(String.UTF8.encode(name), String.UTF8.encode(value));
}

class FilterRoot extends RootContext {
  requests: Counter = new Counter("as_requests");

  createContext(id: u32): Context {
    return new Filter(id, this);
  }
}

class Filter extends Context {
  filter_root: FilterRoot;
  called: string = "nobody";

  constructor(id: u32, root: FilterRoot) {
    super(id, root);
    this.filter_root = root;
  }

  onRequestHeaders(count: u32, ended: bool): FilterHeadersStatusValues {
    this.filter_root.requests.increment(1);
    const act = stream_context.headers.request.get("x-do");
    if (act == "refuse") {
      const headers: HeaderPair[] = [pair("x-by", "assemblyscript")];
      send_local_response(403, "refused", String.UTF8.encode("no"), headers, GrpcStatusValues.PermissionDenied);
      return FilterHeadersStatusValues.StopIteration;
    }
    if (act == "log") {
      log(LogLevelValues.warn, "said in AssemblyScript");
    }
    if (act == "call") {
      const headers: HeaderPair[] = [
        pair(":method", "GET"),
        pair(":path", "/body/called"),
        pair(":authority", "api"),
      ];
      const called = this.filter_root.httpCall(
        "api", headers, new ArrayBuffer(0), [], 1000, this,
        (origin: BaseContext, headers: u32, size: usize, trailers: u32): void => {
          const body = String.UTF8.decode(get_buffer_bytes(BufferTypeValues.HttpCallResponseBody, 0, size as u32));
          (origin as Filter).called = body;
          (origin as Filter).continueRequest();
        });
      if (called == WasmResultValues.Ok) {
        return FilterHeadersStatusValues.StopIteration;
      }
    }
    stream_context.headers.request.add("x-found", ended ? "no body" : "a body");
    return FilterHeadersStatusValues.Continue;
  }

  onResponseHeaders(count: u32, ended: bool): FilterHeadersStatusValues {
    stream_context.headers.response.add("x-configured", this.root_context.getConfiguration());
    stream_context.headers.response.add("x-called", this.called);
    return FilterHeadersStatusValues.Continue;
  }
}

registerRootContext((id: u32): RootContext => new FilterRoot(id), "assemblyscript");
