#!/usr/bin/env bash
# Install or name what pip cannot: the interpreter and its venv module. usage: setup-machine.sh [python3.11]
set -euo pipefail
python=${1:-python3.11}

install() {
    if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
        echo "installing $*"
        apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "$@" >/dev/null
    else
        echo "missing: $*. Install it (Debian: sudo apt-get install $*) and run this again." >&2
        exit 1
    fi
}

command -v "$python" >/dev/null || install python3.11 python3.11-venv
"$python" -c 'import ensurepip, venv' 2>/dev/null || install python3.11-venv
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
if [ "$version" != 3.11 ]; then
    echo "zfdist needs Python 3.11, $python is $version: make PYTHON=/path/to/python3.11" >&2
    exit 1
fi
