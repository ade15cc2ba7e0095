"""A gRPC server that does what a test asks for: `server.py [CERT KEY]` prints its port, `server.py ADDRESS` has that one; it
ends with its standard input."""

import sys
import threading
from concurrent import futures

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

checks = health.HealthServicer()
cancelled = threading.Event()


def ended(context):
    """What is set when the call ends."""
    event = threading.Event()
    context.add_callback(lambda: (event.set(), cancelled.set()))
    return event


def unary(request, context):
    """The same, with what came as metadata, sent back as initial and trailing metadata."""
    metadata = dict(context.invocation_metadata())
    context.send_initial_metadata([("x-seen", metadata.get("x-asked", "-"))])
    context.set_trailing_metadata([("x-after", "trailing"), ("x-time", str(context.time_remaining()))])
    return request


def split(request, context):
    """Every byte by itself."""
    for byte in request:
        yield bytes([byte])


def join(requests, context):
    """All together."""
    return b"".join(requests)


def echo(requests, context):
    """Each as it comes."""
    for request in requests:
        yield request


def fail(request, context):
    """An error, without a message before it."""
    context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not now: 100 % sure")


def end(request, context):
    """What came as `x-end`, behind initial metadata if `x-late` came too."""
    metadata = dict(context.invocation_metadata())
    if "x-late" in metadata:
        context.send_initial_metadata([])
    context.abort(grpc.StatusCode[metadata["x-end"]], "as asked for")


def wait(request, context):
    """Nothing, until the call ends, which is remembered."""
    ended(context).wait(60)
    return request


def tick(request, context):
    """One message, and then nothing until the call ends."""
    call = ended(context)
    yield request
    call.wait(60)


def was_cancelled(request, context):
    """Whether a call that waited was ended, which is waited for."""
    return b"1" if cancelled.wait(10) else b"0"


def serve(request, context):
    """Whether the service that is named first serves."""
    serving = health_pb2.HealthCheckResponse.SERVING
    not_serving = health_pb2.HealthCheckResponse.NOT_SERVING
    service, state = request.decode().split("=")
    checks.set(service, serving if state == "1" else not_serving)
    return b""


METHODS = {
    "Unary": grpc.unary_unary_rpc_method_handler(unary),
    "Split": grpc.unary_stream_rpc_method_handler(split),
    "Join": grpc.stream_unary_rpc_method_handler(join),
    "Echo": grpc.stream_stream_rpc_method_handler(echo),
    "Fail": grpc.unary_unary_rpc_method_handler(fail),
    "End": grpc.unary_unary_rpc_method_handler(end),
    "Wait": grpc.unary_unary_rpc_method_handler(wait),
    "Tick": grpc.unary_stream_rpc_method_handler(tick),
    "WasCancelled": grpc.unary_unary_rpc_method_handler(was_cancelled),
    "Serve": grpc.unary_unary_rpc_method_handler(serve),
}

unbounded = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
server = grpc.server(futures.ThreadPoolExecutor(20), options=unbounded)
server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.Test", METHODS)])
health_pb2_grpc.add_HealthServicer_to_server(checks, server)
if len(sys.argv) > 2:
    cert, key = (open(file, "rb").read() for file in sys.argv[1:3])
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(key, cert)]))
else:
    port = server.add_insecure_port(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:0")
server.start()
print(port, flush=True)
sys.stdin.read()
