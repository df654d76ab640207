#!/usr/bin/env bash
# Fashion-MNIST (31 MB, MIT licence) from Debian's package `dataset-fashion-mnist`:
# as root installed, otherwise unpacked into the user's cache folder. Does nothing where it is already there.
set -euo pipefail
source "$(dirname "$0")/debian.sh"

package=dataset-fashion-mnist
system=/usr/share/datasets/fashion-mnist
own=$(cache_folder)/fashion-mnist

complete() {
    local part
    for part in train-images-idx3 train-labels-idx1 t10k-images-idx3 t10k-labels-idx1; do
        [ -s "$1/$part-ubyte.gz" ] || return 1
    done
}

complete "$system" || complete "$own" && exit 0

say "fetching Fashion-MNIST (Debian's $package, 31 MB)"
if debian_install "$package" && complete "$system"; then
    say "installed in $system"
    exit 0
fi

mkdir -p "$(dirname "$own")"
work=$(mktemp -d "$(dirname "$own")/unpack.XXXXXX")
trap 'rm -rf "$work"' EXIT
(debian_unpack "$package" "$work") && complete "$work$system" || fail \
    "could not fetch Debian's package $package." \
    "Put its four files ({train,t10k}-{images-idx3,labels-idx1}-ubyte.gz) into $own, then run this again."
rm -rf "$own"
mv "$work$system" "$own"
cp "$work/usr/share/doc/$package/copyright" "$own/" 2>/dev/null || true
say "unpacked in $own"
