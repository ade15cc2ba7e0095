// An origin for tests: keeps what it saw of each whole request as a line of JSON, and answers with its target.
"use strict";

const fs = require("fs");
const http = require("http");

const log = process.argv[2];
let connections = 0;

const pairs = (raw) => {
  const fields = [];
  for (let at = 0; at < raw.length; at += 2) fields.push([raw[at].toLowerCase(), raw[at + 1]]);
  return fields;
};

const server = http.createServer((request, response) => {
  const chunks = [];
  request.on("data", (chunk) => chunks.push(chunk));
  request.on("end", () => {
    const seen = {
      connection: request.socket.number,
      method: request.method,
      target: request.url,
      headers: pairs(request.rawHeaders),
      body: Buffer.concat(chunks).toString("latin1"),
      trailers: pairs(request.rawTrailers),
    };
    fs.appendFileSync(log, JSON.stringify(seen) + "\n", "latin1");
    response.end(request.url);
  });
});
server.keepAliveTimeout = 600000;
server.on("connection", (socket) => { socket.number = ++connections; });
server.listen(0, "127.0.0.1", () => console.log(server.address().port));
