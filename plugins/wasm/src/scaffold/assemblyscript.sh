#!/bin/sh
# Builds NAME.wasm from policy.ts. What that takes is installed from npm where it is missing, beside nothing of yours.
set -eu
cd "$(dirname "$0")"

tools=${PORTCULLIS_TOOLS:-${XDG_CACHE_HOME:-$HOME/.cache}/portcullis}/assemblyscript
asc=$tools/node_modules/.bin/asc
if [ ! -x "$asc" ]; then
    npm install --silent --no-fund --no-audit --prefix "$tools" assemblyscript@0.28.20
fi
# Nothing is freed: an instance lives for one exchange.
"$asc" policy.ts --use abort=host/abort --exportStart _initialize --runtime stub --optimize -o NAME.wasm
