#!/bin/sh
# Builds NAME.wasm from policy.zig. Zig is installed from PyPI where it is missing, beside nothing of yours.
set -eu
cd "$(dirname "$0")"

tools=${PORTCULLIS_TOOLS:-${XDG_CACHE_HOME:-$HOME/.cache}/portcullis}/zig
zig() { "$tools/bin/python" -m ziglang "$@"; }
if [ ! -x "$tools/bin/python" ]; then
    python3 -m venv "$tools"
    "$tools/bin/pip" install --quiet --disable-pip-version-check ziglang==0.15.2
fi
zig translate-c -target wasm32-wasi -lc sdk/policy.h > sdk.zig
zig build-exe policy.zig sdk/policy.c sdk/policy_component_type.o -target wasm32-wasi -lc \
    -mexec-model=reactor -rdynamic -fstrip -OReleaseSmall --stack 65536 -femit-bin=NAME.wasm
