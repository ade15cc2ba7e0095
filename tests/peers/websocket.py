"""WebSockets by a library that is not ours: a server that echoes, and a client that says what it saw.

    websocket.py serve       prints its port, serves until it is ended
    websocket.py talk URL    one line of JSON: what came of a conversation
"""

import asyncio
import json
import os
import sys
from urllib.parse import urlsplit

import websockets


async def echo(socket, _path=None):
    async for message in socket:
        if message == "close":
            await socket.close(4001, "bye")
        else:
            await socket.send(message)


async def serve():
    async with websockets.serve(echo, "127.0.0.1", 0, max_size=None) as server:
        print(server.sockets[0].getsockname()[1], flush=True)
        await asyncio.Future()


def connect(url, **options):
    if url.startswith("wss:"):
        options["server_hostname"] = urlsplit(url).hostname
    return websockets.connect(url, host="127.0.0.1", **options)


async def talk(url):
    seen = {}
    async with connect(url, max_size=None) as socket:
        await socket.send("hello")
        seen["echo"] = await socket.recv()
        large = os.urandom(3 << 20)
        await socket.send(large)
        seen["large"] = await socket.recv() == large
        many = [str(number) for number in range(1000)]
        sending = asyncio.gather(*(socket.send(message) for message in many))
        seen["many"] = [await socket.recv() for _ in many] == many
        await sending
        pong = await socket.ping()
        await pong
        seen["pong"] = True
        await socket.close(1000)
        seen["closed"] = socket.close_code
    async with connect(url) as socket:
        await socket.send("close")
        try:
            await socket.recv()
        except websockets.ConnectionClosed as closed:
            seen["closed_by_server"] = [closed.rcvd.code, closed.rcvd.reason]
    print(json.dumps(seen))


asyncio.run(talk(sys.argv[2]) if sys.argv[1] == "talk" else serve())
