"""Refuses requests with the header `x-refuse`, and greets the upstream with the others."""

import json

from componentize_py_types import Err
from wit_world import exports
from wit_world.imports import exchange, host
from wit_world.imports.exchange import Message
from wit_world.imports.types import Denial, Verdict, Verdict_Continue, Verdict_Deny


def greeting():
    return json.loads(host.config()).get("greeting", "hello")


class Configuration(exports.Configuration):
    def configure(self) -> None:
        """What is raised refuses the load of the policy."""
        if not isinstance(greeting(), str):
            raise Err("greeting: not text")


class OnRequest(exports.OnRequest):
    def on_request(self) -> Verdict:
        if exchange.header(Message.REQUEST, "x-refuse") is not None:
            return Verdict_Deny(Denial(403, "SNAKE.refused"))
        exchange.set_header(Message.REQUEST, "x-policy", greeting().encode())
        return Verdict_Continue()
