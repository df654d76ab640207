# Sourced by the other scripts: Debian packages with or without root.

say() { printf 'regrow: %s\n' "$*" >&2; }
fail() { printf 'regrow: %s\n' "$@" >&2; exit 1; }

cache_folder() {
    local home=${HOME:-$(getent passwd "$(id -u)" | cut -d: -f6)}
    printf '%s\n' "${XDG_CACHE_HOME:-$home/.cache}/regrow"
}

# debian_install NAME...: as root, into the system; fails quietly where that is not possible.
debian_install() {
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || return 1
    local get=(env DEBIAN_FRONTEND=noninteractive apt-get -qq -y)
    "${get[@]}" install --no-install-recommends "$@" </dev/null >&2 2>/dev/null && return
    "${get[@]}" update </dev/null >&2 && "${get[@]}" install --no-install-recommends "$@" </dev/null >&2
}

# debian_unpack NAME FOLDER: the package's files into FOLDER, without root and without installing anything.
debian_unpack() {
    command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || return 1
    local folder lists
    folder=$(realpath -m "$2")
    mkdir -p "$folder/download" && cd "$folder/download" || return 1
    if ! apt-get -qq download "$1" >&2 2>/dev/null; then
        # No package lists on this machine, or old ones: fetch them into the same folder.
        lists=(-o "Dir::State=$folder/apt" -o "Dir::Cache=$folder/apt" -o Dir::State::status=/var/lib/dpkg/status)
        mkdir -p "$folder/apt/lists/partial" "$folder/apt/archives/partial"
        apt-get -qq "${lists[@]}" update >&2 && apt-get -qq "${lists[@]}" download "$1" >&2 || return 1
    fi
    dpkg-deb -x "$1"_*.deb "$folder" && cd - >/dev/null
}
