"""Calls through a gateway: `client.py ADDRESS [CA]` reads cases, one a line, and prints what came of each as JSON.

A case is one of those below, the path of a method, or the name of an outcome that the server is to tell, `late` behind
a head of its own."""

import collections
import json
import sys
import time

import grpc

options = [("grpc.max_receive_message_length", -1), ("grpc.enable_retries", 0)]
if len(sys.argv) > 2:
    with open(sys.argv[2], "rb") as ca:
        credentials = grpc.ssl_channel_credentials(ca.read())
    options.append(("grpc.ssl_target_name_override", "one.test"))
    channel = grpc.secure_channel(sys.argv[1], credentials, options)
else:
    channel = grpc.insecure_channel(sys.argv[1], options)


def method(kind, name):
    return getattr(channel, kind)(name if name.startswith("/") else f"/test.Test/{name}")


def unary(name="Unary", message=b"hello", **more):
    answer, call = method("unary_unary", name).with_call(message, timeout=more.pop("timeout", 10), **more)
    return {
        "answer": answer.decode(),
        "initial": dict(call.initial_metadata()),
        "trailing": dict(call.trailing_metadata()),
    }


def end(outcome, *late):
    """The outcome that the server was asked for; no time is set, so that none is to blame."""
    unary("End", timeout=None, metadata=[("x-end", outcome), *(("x-late", "1") for _ in late)])


def large():
    message = b"x" * (20 << 20)
    answer = method("unary_unary", "Unary")(message, timeout=30)
    return {"same": answer == message}


def bidi():
    """Each message is sent when the one before has come back."""
    heard = []

    def messages():
        for number in range(5):
            while len(heard) < number:
                time.sleep(0.001)
            yield str(number).encode()

    for message in method("stream_stream", "Echo")(messages(), timeout=10):
        heard.append(message.decode())
    return {"heard": heard}


def cancel():
    call = method("unary_stream", "Tick")(b"first", timeout=10)
    first = next(call)
    call.cancel()
    return {"first": first.decode(), "cancelled": unary("WasCancelled")["answer"]}


def silent(limit):
    """A stream that goes silent, with a time limit."""
    began = time.monotonic()
    call = method("unary_stream", "Tick")(b"first", timeout=limit)
    first = next(call)
    try:
        next(call)
    except grpc.RpcError as error:
        return {"first": first.decode(), "code": error.code().name, "took": time.monotonic() - began}


def many(count=50):
    """Calls one after the other: how they ended, and how long the longest took."""
    codes, longest = collections.Counter(), 0
    for _ in range(count):
        began = time.monotonic()
        try:
            unary()
            codes["OK"] += 1
        except grpc.RpcError as error:
            codes[error.code().name] += 1
        longest = max(longest, time.monotonic() - began)
    return {"codes": codes, "longest": longest}


CASES = {
    "unary": lambda: unary(metadata=[("x-asked", "7")]),
    "split": lambda: {"heard": [part.decode() for part in method("unary_stream", "Split")(b"abc", timeout=10)]},
    "join": lambda: {"answer": method("stream_unary", "Join")(iter([b"a", b"b", b"c"]), timeout=10).decode()},
    "bidi": bidi,
    "fail": lambda: unary("Fail"),
    "unknown": lambda: unary("Unknown"),
    "deadline": lambda: unary("Wait", timeout=0.3),
    "cancel": cancel,
    "silent": lambda: silent(0.5),
    "silent for long": lambda: silent(20),
    "large": large,
    "many": many,
    "serving": lambda: unary("Serve", b"shop.Orders=1"),
    "not serving": lambda: unary("Serve", b"shop.Orders=0"),
}

for line in sys.stdin:
    try:
        case = line.strip()
        if case.startswith("/"):
            result = unary(case)
        elif case.isupper() or case.endswith(" late"):
            result = end(*case.split())
        else:
            result = CASES[case]()
    except grpc.RpcError as error:
        result = {
            "code": error.code().name,
            "details": error.details(),
            "initial": dict(error.initial_metadata() or []),
            "trailing": dict(error.trailing_metadata() or []),
        }
    print(json.dumps(result), flush=True)
