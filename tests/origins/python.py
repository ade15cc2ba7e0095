"""An origin for tests: keeps what it saw of each whole request as a line of JSON, and answers with its target."""

import http.server
import itertools
import json
import sys
import threading

LOG = open(sys.argv[1], "a", buffering=1)
LOCK = threading.Lock()
CONNECTIONS = itertools.count(1)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def setup(self):
        super().setup()
        self.number = next(CONNECTIONS)

    def __getattr__(self, name):
        if name.startswith("do_"):
            return self.serve
        raise AttributeError(name)

    def serve(self):
        body, trailers = self.read()
        seen = {
            "connection": self.number,
            "method": self.command,
            "target": self.path,
            "headers": [[name.lower(), value] for name, value in self.headers.items()],
            "body": body.decode("latin-1"),
            "trailers": trailers,
        }
        with LOCK:
            LOG.write(json.dumps(seen) + "\n")
        answer = self.path.encode("latin-1")
        self.send_response(200)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer)

    def read(self):
        if self.headers.get("transfer-encoding") != "chunked":
            return self.exactly(int(self.headers.get("content-length", 0))), []
        body, trailers = b"", []
        while size := int(self.rfile.readline(), 16):
            body += self.exactly(size)
            self.exactly(2)
        while line := self.rfile.readline().decode("latin-1").strip("\r\n"):
            name, value = line.split(":", 1)
            trailers.append([name.lower(), value.strip()])
        return body, trailers

    def exactly(self, length):
        read = self.rfile.read(length)
        if len(read) < length:
            raise ConnectionError("the request broke off")
        return read

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_):
        pass


server = Server(("127.0.0.1", 0), Handler)
print(server.server_address[1], flush=True)
server.serve_forever()
