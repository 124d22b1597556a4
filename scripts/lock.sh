#!/usr/bin/env bash
# Pin again what pyproject.toml asks for: `scripts/lock.sh` keeps the versions that still fit, `--upgrade` takes the newest.
# Every file holds versions and hashes, and no download address.
set -euo pipefail
cd "$(dirname "$0")/.."
command -v uv >/dev/null || { echo "make lock needs the tool uv (pip install uv)." >&2; exit 1; }

compile() { # OUTPUT ARGUMENT...
    local output=$1
    shift
    echo "requirements/$output"
    uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
        --output-file "requirements/$output" "$@" >/dev/null
}

compile all.txt --all-extras "$@" pyproject.toml
# The others are parts of the first: one version of a package everywhere.
compile serve.txt --extra postgres --constraints requirements/all.txt pyproject.toml
compile train.txt --extra train --extra postgres --constraints requirements/all.txt pyproject.toml
# The build backend of pyproject.toml, for the stage of the Dockerfile that makes the wheel.
compile build.txt --constraints requirements/all.txt - <<<hatchling
