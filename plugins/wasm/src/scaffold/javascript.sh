#!/bin/sh
# Builds NAME.wasm from policy.js. What that takes is installed from npm where it is missing, beside nothing of yours.
set -eu
cd "$(dirname "$0")"

tools=${PORTCULLIS_TOOLS:-${XDG_CACHE_HOME:-$HOME/.cache}/portcullis}/javascript
componentize=$tools/node_modules/.bin/componentize-qjs
if [ ! -x "$componentize" ]; then
    npm install --silent --no-fund --no-audit --prefix "$tools" componentize-qjs@0.4.5
fi
"$componentize" --wit wit --world policy --js policy.js --sync -o NAME.wasm
