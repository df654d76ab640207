#!/usr/bin/env bash
# scripts/sanitize.sh PYTHON [ARGUMENTS]: builds the kernels with the address and undefined-behaviour sanitizers into
# build/sanitize, beside a copy of the package, and runs the tests of ops, growth, tiles and nn on them, pytest with ARGUMENTS. Fails on any report.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=$1
shift

folder=$PWD/build/sanitize
rm -rf "$folder/src" "$folder/reports"
mkdir -p "$folder/src" "$folder/reports"
cp -r src/regrow "$folder/src/"
rm -f "$folder"/src/regrow/_kernels*.so
REGROW_SANITIZE=address,undefined "$python" setup.py -q build_ext --build-temp "$folder/objects" \
    --build-lib "$folder/src" >"$folder/build.log" 2>&1
compgen -G "$folder/src/regrow/_kernels*.so" >/dev/null || { cat "$folder/build.log"; exit 1; }

# Leaks are not looked for: the interpreter and torch keep memory to the end. Exceptions of C++ pass through the
# sanitizer's runtime, which needs libstdc++ beside it.
code=0
LD_PRELOAD="$(g++ -print-file-name=libasan.so) $(g++ -print-file-name=libstdc++.so)" \
    ASAN_OPTIONS="detect_leaks=0:log_path=$folder/reports/address" \
    UBSAN_OPTIONS="print_stacktrace=1:log_path=$folder/reports/undefined" \
    PYTHONPATH="$folder/src" \
    "$python" -m pytest -q -p no:cacheprovider tests/ops tests/growth tests/tiles tests/nn tests/inference "$@" || code=$?
if compgen -G "$folder/reports/*" >/dev/null; then
    cat "$folder"/reports/*
    echo "the sanitizers have reported" >&2
    exit 1
fi
[ "$code" = 0 ] && echo "no report of the sanitizers"
exit "$code"
