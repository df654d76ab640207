#!/usr/bin/env bash
# Makes a Python environment ready for regrow and prints its interpreter (everything else goes to standard error).
#
#   scripts/setup.sh EXTRAS       for example `train`, `train,test` or `docs`
#
# The environment: the active one, else the one that $PYTHON belongs to, else .venv (made here, with $PYTHON
# or python3). torch: one that is there is never replaced; otherwise $TORCH, `torch==2.13.0` unless set.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/debian.sh
exec 3>&1 1>&2

extras=$1
torch=${TORCH:-torch==2.13.0}

recent() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }
in_environment() {
    "$1" -c 'import os, sys; sys.exit(sys.prefix == sys.base_prefix and not os.path.isdir(sys.prefix + "/conda-meta"))'
}

system_python() {
    local name
    for name in ${PYTHON:+"$PYTHON"} python3 python3.11 python3.12 python3.13 python3.14; do
        command -v "$name" >/dev/null && recent "$name" && { command -v "$name"; return; }
    done
    return 1
}

# A fresh Debian has no python3-venv: install it as root, otherwise put Debian's pip into the environment.
make_environment() {
    local base whl work
    base=$(system_python) || { debian_install python3 python3-venv && base=$(system_python); } || fail \
        "needs Python 3.11 or newer; found none. Ask an administrator: apt-get install python3 python3-venv," \
        "or name one: make test PYTHON=/path/to/python3"
    say "making .venv with $base"
    if "$base" -c 'import ensurepip' 2>/dev/null || debian_install python3-venv; then
        "$base" -m venv --clear .venv
        return
    fi
    "$base" -m venv --clear --without-pip .venv
    work=$(mktemp -d)
    (debian_unpack python3-pip-whl "$work") || fail \
        "this Python makes no environments. Ask an administrator: apt-get install python3-venv"
    whl=$(echo "$work"/usr/share/python-wheels/pip-*.whl)
    .venv/bin/python "$whl/pip" install --quiet --no-index "$whl"
    rm -rf "$work"
}

if [ -n "${VIRTUAL_ENV:-}" ] && [ -x "$VIRTUAL_ENV/bin/python" ]; then
    python=$VIRTUAL_ENV/bin/python
elif [ -n "${CONDA_PREFIX:-}" ] && [ "${CONDA_DEFAULT_ENV:-base}" != base ]; then
    python=$CONDA_PREFIX/bin/python
elif [ -n "${PYTHON:-}" ] && in_environment "$PYTHON"; then
    python=$(command -v "$PYTHON")
else
    .venv/bin/python -m pip --version >/dev/null 2>&1 || make_environment
    python=$PWD/.venv/bin/python
fi
recent "$python" || fail "needs Python 3.11 or newer; $python is $("$python" --version 2>&1)." \
    "Name another one: make test PYTHON=/path/to/python3"

# The version of torch in the environment, without importing it.
torch_version() {
    "$python" -c 'from importlib.metadata import version; print(version("torch"))' 2>/dev/null
}

# Done before, for this folder and these requirements? Then there is nothing to do.
prefix=$("$python" -c 'import sys; print(sys.prefix)')
stamp() { { echo "$PWD" "$1"; cat pyproject.toml setup.py src/regrow/ops/compiling.py src/regrow/csrc/*; } | sha256sum; }
done_before() {
    [ "$(cat "$prefix/.regrow-$1" 2>/dev/null)" = "$(stamp "$1")" ] &&
        { [ -f src/regrow/_kernels.abi3.so ] || ! command -v "${CXX:-c++}" >/dev/null; }
}
if torch_version >/dev/null && { done_before "$extras" || { [ "$extras" = train ] && done_before train,test; }; }; then
    echo "$python" >&3
    exit 0
fi

pip=("$python" -m pip install -qq --disable-pip-version-check --no-input)
if ! torch_version >/dev/null; then
    say "installing $torch"
    # shellcheck disable=SC2086  # TORCH may hold options of pip besides the requirement
    "${pip[@]}" $torch
fi
version=$(torch_version)
"$python" -c 'import re, sys; sys.exit(tuple(map(int, re.findall(r"\d+", sys.argv[1])[:2])) < (2, 10))' "$version" ||
    fail "needs torch 2.10 or newer; the environment of $python has $version, which is left as it is." \
        "Upgrade it there, or leave that environment so that .venv is made."

command -v "${CXX:-c++}" >/dev/null || debian_install g++ ||
    say "no C++ compiler: regrow works without its kernels, several times slower (apt-get install g++)"
"${pip[@]}" "setuptools>=77"
"$python" setup.py -q build_ext --inplace # not by pip, which would not show how far it is

say "installing regrow[$extras] beside torch $version"
constraint=$(mktemp)
trap 'rm -f "$constraint"' EXIT
echo "torch==$version" >"$constraint"
REGROW_BUILD=0 "${pip[@]}" --constraint "$constraint" --no-build-isolation --editable ".[$extras]"
stamp "$extras" >"$prefix/.regrow-$extras"
echo "$python" >&3
