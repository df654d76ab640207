#!/usr/bin/env bash
# Lines of code per folder (no blank lines, no comment lines), and the largest files: a brake, not a limit.
set -euo pipefail
cd "$(dirname "$0")/.."
code() { cat "$@" 2>/dev/null | grep -cvE '^[[:space:]]*(#|$)' || true; }

shopt -s nullglob
printf '%8s %6s  %s\n' lines files folder
find src* tests* examples* scripts* benchmarks* -type f \( -name '*.py' -o -name '*.sh' -o -name '*.cpp' -o -name '*.h' \) \
    -printf '%h\n' | sort -u | while read -r folder; do
    mapfile -t files < <(find "$folder" -maxdepth 1 -type f \( -name '*.py' -o -name '*.sh' -o -name '*.cpp' -o -name '*.h' \))
    printf '%8d %6d  %s\n' "$(code "${files[@]}")" "${#files[@]}" "$folder"
done
mapfile -t all < <(find src -name '*.py')
printf '%8d %6d  %s\n' "$(code "${all[@]}")" "${#all[@]}" 'src, all of it'
echo 'largest files:'
for file in "${all[@]}"; do printf '%8d         %s\n' "$(code "$file")" "$file"; done | sort -rn | sed -n 1,5p
