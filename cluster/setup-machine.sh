#!/usr/bin/env bash
# Install or name what pip cannot: the interpreter with its venv module and headers, and compilers. usage: setup-machine.sh [python3.11]
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
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
case $version in
3.11 | 3.12 | 3.13) ;;
*)
    echo "zfdist needs Python 3.11, 3.12 or 3.13, $python is $version: make PYTHON=/path/to/python3.11" >&2
    exit 1
    ;;
esac
"$python" -c 'import ensurepip, venv' 2>/dev/null || install "python$version-venv"
# The loops over time are C++ that is compiled at first use; on a GPU Triton compiles against Python's headers with a C
# compiler. Without them slower code serves, so that their lack is told and ends nothing.
headers=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')
lacking=()
command -v cc >/dev/null && command -v c++ >/dev/null || lacking+=(gcc g++)
[ -f "$headers/Python.h" ] || lacking+=("python$version-dev")
if [ ${#lacking[@]} -gt 0 ]; then
    (install "${lacking[@]}") || echo "zfdist goes on without ${lacking[*]}: loops over time are slower" >&2
fi
