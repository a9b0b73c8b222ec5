#!/usr/bin/env bash
# Give this node the environment ~/zfdist/venv with the pinned versions, and put it on the PATH. Run it as often as you
# like: with the versions there (an earlier run, or an image that brings them) it takes a second and changes nothing.
# usage: setup-node.sh    beside pyproject.toml and constraints.txt in ~/zfdist
set -euo pipefail
here=$HOME/zfdist
venv=$here/venv

# Prints each dependency of the project that is not there in the pinned version.
missing() {
    "$1" - "$here/pyproject.toml" "$here/constraints.txt" <<'PYTHON'
import re, sys, tomllib
from importlib import metadata

name_of = lambda text: re.split(r"[^A-Za-z0-9_.-]", text)[0].lower().replace("_", "-")
pins = {name_of(line): line.strip().split("==")[1] for line in open(sys.argv[2]) if "==" in line}
for wanted in tomllib.load(open(sys.argv[1], "rb"))["project"]["dependencies"]:
    try:
        found = metadata.version(name_of(wanted)).split("+")[0]
    except metadata.PackageNotFoundError:
        found = None
    if found != pins.get(name_of(wanted), found) or found is None:
        print(wanted)
PYTHON
}

if ! grep -qs zfdist/venv "$HOME/.bashrc"; then # first, as Ubuntu's .bashrc returns early where nobody types
    { echo 'export PATH="$HOME/zfdist/venv/bin:$PATH"'; cat "$HOME/.bashrc" 2>/dev/null || true; } >"$HOME/.bashrc.new"
    mv "$HOME/.bashrc.new" "$HOME/.bashrc"
fi

# The loops over time are compiled at first use: C++ on a CPU; on a GPU by Triton, against Python's headers.
compilers() {
    local packages=() headers
    headers=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("include"))')
    command -v cc >/dev/null && command -v g++ >/dev/null || packages+=(gcc g++)
    [ -f "$headers/Python.h" ] || packages+=(python3.11-dev)
    [ ${#packages[@]} = 0 ] || sudo apt-get install -qq -y "${packages[@]}" ||
        echo "zfdist: no ${packages[*]}: install it on this node, loops over time are slower without" >&2
}

if [ -x "$venv/bin/python" ] && [ -z "$(missing "$venv/bin/python")" ]; then
    compilers
    echo "zfdist: $venv has the pinned versions"
    exit 0
fi

if [ ! -x "$venv/bin/python" ]; then
    if command -v python3.11 >/dev/null && python3.11 -c 'import ensurepip, venv' 2>/dev/null; then
        python3.11 -m venv "$venv"
    else # uv brings a Python of its own
        command -v curl >/dev/null || sudo apt-get install -qq -y curl
        command -v uv >/dev/null || curl -LsSf https://astral.sh/uv/0.13.9/install.sh | env UV_INSTALL_DIR="$here/bin" sh
        PATH="$here/bin:$PATH" uv venv --quiet --seed --python 3.11 "$venv"
    fi
fi
compilers
echo "zfdist: installing into $venv"
missing "$venv/bin/python" >"$here/requirements.txt"
"$venv/bin/pip" install --quiet --disable-pip-version-check --constraint "$here/constraints.txt" \
    --requirement "$here/requirements.txt"
still=$(missing "$venv/bin/python")
if [ -n "$still" ]; then
    echo "zfdist: not installed in the pinned version: $still" >&2
    exit 1
fi
