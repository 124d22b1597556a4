#!/usr/bin/env bash
# Make .venv and install the pinned packages and this project into it: scripts/setup-venv.sh [PYTHON]
# Needs Python 3.11 to 3.13 with its venv module, nothing else. The file .venv/.complete marks an installation that ran
# to its end; a .venv without the mark is made anew (pip keeps what it has downloaded in its cache).
set -euo pipefail
cd "$(dirname "$0")/.."

fail() {
    echo "error: $*" >&2
    exit 1
}

usable() { # PYTHON
    "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null
}

find_python() { # CANDIDATE...
    for candidate in "$@"; do
        if usable "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    fail "Equipoise needs Python 3.11, 3.12 or 3.13 and found none ($*). Name yours: make PYTHON=/path/to/python3.11 ..."
}

make_venv() {
    local python candidates=("$@")
    [ $# -gt 0 ] || candidates=(python3.11 python3 python3.12 python3.13)
    python=$(find_python "${candidates[@]}")
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        fail "$python comes without its venv module. On Debian and Ubuntu: apt-get install python3-venv"
    [ ! -e .venv ] || echo "The installation in .venv is not complete: making it anew."
    rm -rf .venv
    "$python" -m venv .venv
}

# A line for each large file instead of pip's three hundred; errors come on stderr, untouched.
show_progress() {
    awk '
        $1 == "Collecting" { packages++ }
        $1 == "Downloading" || $1 " " $2 == "Using cached" {
            size = substr($(NF - 1), 2); unit = $NF; sub(/\)/, "", unit)
            if (unit == "GB" || unit == "MB" && size + 0 >= 20) {
                name = $(NF - 2); sub(/.*\//, "", name); sub(/-.*/, "", name)
                printf "  %-36s %6s %s\n", name, size, unit; fflush()
            }
        }
        /^Installing collected packages/ { printf "  unpacking %d packages (a minute or two)\n", packages; fflush() }'
}

if [ ! -f .venv/.complete ] || ! usable .venv/bin/python; then
    make_venv "$@"
fi
rm -f .venv/.complete

export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
echo "Installing the pinned packages into .venv; the large ones:"
.venv/bin/python -m pip install --progress-bar off --require-hashes -r requirements/all.txt | show_progress
.venv/bin/python -m pip install --quiet --no-deps --no-build-isolation --editable .
touch .venv/.complete
echo "Installed in $SECONDS s."
