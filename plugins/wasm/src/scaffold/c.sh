#!/bin/sh
# Builds NAME.wasm from policy.c, with a clang that makes WebAssembly and the C library for it.
set -eu
cd "$(dirname "$0")"

works() { echo 'int main(void) { return 0; }' | "$1" --target=wasm32-wasi -x c - -o "$probe" 2> /dev/null; }

probe=$(mktemp)
clang=
for candidate in clang clang-22 clang-21 clang-20 clang-19 clang-18 clang-17 clang-16 clang-15 clang-14; do
    if command -v "$candidate" > /dev/null && works "$candidate"; then
        clang=$candidate
        break
    fi
done
rm -f "$probe"
if [ -z "$clang" ]; then
    echo "no clang here makes WebAssembly: on Debian and Ubuntu," >&2
    echo "\`apt-get install clang lld wasi-libc libclang-rt-dev-wasm32\`" >&2
    exit 3
fi
# The linker's stack comes first and is small, so that an instance's memory is.
"$clang" --target=wasm32-wasi -Os -Wall -Wextra -Wno-unused-parameter -nostartfiles \
    -Wl,--no-entry,--strip-debug,--stack-first,-z,stack-size=65536 \
    policy.c sdk/policy.c sdk/policy_component_type.o -o NAME.wasm
