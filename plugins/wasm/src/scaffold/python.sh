#!/bin/sh
# Builds NAME.wasm from policy.py. What that takes is installed from PyPI where it is missing, beside nothing of yours.
set -eu
cd "$(dirname "$0")"

tools=${PORTCULLIS_TOOLS:-${XDG_CACHE_HOME:-$HOME/.cache}/portcullis}/python
if [ ! -x "$tools/bin/componentize-py" ]; then
    python3 -m venv "$tools"
    "$tools/bin/pip" install --quiet --disable-pip-version-check componentize-py==0.25.1
fi
"$tools/bin/componentize-py" --quiet -d wit -w policy componentize policy -o NAME.wasm
