// An HTTP/2 server by a library that is not ours, before a WebSocket server that speaks HTTP/1.1 alone.
//
//     http2.js PORT connect           takes an extended CONNECT (RFC 8441)
//     http2.js PORT none              takes no wish for another protocol
//     http2.js PORT http1 CERT KEY    over TLS, takes none, but chooses HTTP/1.1 if that is all it is offered
//     http2.js PORT http2 CERT KEY    over TLS, takes none, and chooses HTTP/2 alone
//
// Prints its port, serves until it is ended. Any other request is answered with the HTTP version it came by.

const fs = require("fs");
const http2 = require("http2");
const net = require("net");

const [, , port, mode, cert, key] = process.argv;
const settings = { enableConnectProtocol: mode === "connect" };
const options = { settings, allowHTTP1: mode === "http1" };
const server = cert
  ? http2.createSecureServer({ ...options, cert: fs.readFileSync(cert), key: fs.readFileSync(key) })
  : http2.createServer(options);

// Connects both ways, byte by byte.
function join(one, other) {
  one.on("error", () => other.destroy());
  other.on("error", () => one.destroy());
  one.pipe(other).pipe(one);
}

// Makes the handshake of HTTP/1.1 with the WebSocket server; calls back with the answer's head and the connection.
function handshake(path, headers, done) {
  const socket = net.connect({ port: Number(port), host: "127.0.0.1", allowHalfOpen: true });
  const lines = Object.entries(headers).map(([name, value]) => `${name}: ${value}\r\n`);
  socket.write(`GET ${path} HTTP/1.1\r\nconnection: upgrade\r\nupgrade: websocket\r\n${lines.join("")}\r\n`);
  let head = Buffer.alloc(0);
  socket.on("data", function listen(data) {
    head = Buffer.concat([head, data]);
    const end = head.indexOf("\r\n\r\n");
    if (end < 0) return;
    socket.off("data", listen).pause();
    socket.unshift(head.subarray(end + 4));
    done(head.subarray(0, end + 4), socket);
  });
}

// Over HTTP/2 the key is this server's own.
server.on("stream", (stream, headers) => {
  const path = headers[":path"];
  if (headers[":method"] !== "CONNECT") {
    stream.respond({ ":status": 200 });
    stream.end("HTTP/2.0");
    return;
  }
  if (headers["sec-websocket-key"] || headers[":protocol"] !== "websocket" || path === "/refused") {
    stream.respond({ ":status": 403 });
    stream.end("no");
    return;
  }
  const own = { host: headers[":authority"], "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==" };
  for (const name of Object.keys(headers)) {
    if (!name.startsWith(":")) own[name] = headers[name];
  }
  handshake(path, own, (head, socket) => {
    const answer = { ":status": 200 };
    for (const [, name, value] of head.toString().matchAll(/^(sec-websocket-(?!accept).*?): (.*)\r$/gim)) {
      answer[name.toLowerCase()] = value;
    }
    stream.respond(answer);
    join(stream, socket);
  });
});

// Without this Node answers it itself.
server.on("connect", () => {});

server.on("request", (request, response) => {
  if (request.httpVersion !== "2.0") response.end(`HTTP/${request.httpVersion}`);
});

server.on("upgrade", (request, client) => {
  const { connection, upgrade, ...headers } = request.headers;
  handshake(request.url, headers, (head, socket) => {
    client.write(head);
    join(client, socket);
  });
});

server.on("sessionError", () => {});
server.listen(0, "127.0.0.1", () => console.log(server.address().port));
