#!/usr/bin/env bash
# Builds the wheel and uses it where nothing of this folder can be seen: in a new environment, from another folder.
# First with torch and numpy alone (import, a training in a plain loop), then the command line.
#
#   scripts/wheel-test.sh PYTHON      an interpreter that has `build` and torch
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/debian.sh

python=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
unset PYTHONPATH VIRTUAL_ENV
export REGROW_REPOSITORY=$PWD XDG_CACHE_HOME=${XDG_CACHE_HOME:-$(dirname "$(cache_folder)")}

scripts/wheel.sh "$python" "$work/dist"
wheel=$(echo "$work"/dist/regrow-*.whl)

say "a new environment with torch and the wheel alone"
"$python" -m venv --without-pip "$work/env"
pip=("$python" -m pip --python "$work/env/bin/python" --disable-pip-version-check -qq --no-input)
version=$("$python" -c 'from importlib.metadata import version; print(version("torch").split("+")[0])')
# shellcheck disable=SC2086  # TORCH may hold options of pip besides the requirement
"${pip[@]}" install ${TORCH:-torch==$version}
"${pip[@]}" install "$wheel"
mkdir "$work/elsewhere"
cp scripts/wheel_training.py "$work/elsewhere/"
cd "$work/elsewhere"
"$work/env/bin/python" wheel_training.py
"$work/env/bin/python" -m regrow doctor

say "the same environment with the wheel's [train]"
"${pip[@]}" install "$wheel[train]"
"$work/env/bin/regrow" methods
"$work/env/bin/regrow" train fashion-mlp epochs=1 data.limit=6000 method.update_every=10 out=run </dev/null
for file in config.yaml summary.json; do
    [ -s "run/$file" ] || fail "the run folder lacks $file"
done
compgen -G 'run/**/*.png' >/dev/null || compgen -G 'run/*.png' >/dev/null || fail "the run folder has no picture"
