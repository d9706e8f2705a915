#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# initrd.sh ROOT LIST MODULES OUT: an initrd (cpio, zstd) from the listed files of the tree ROOT,
# the libraries they need, and the modules marked "+" in MODULES. Runs inside the build tree.
set -euo pipefail
root=$1 list=$2 modules=$3 out=$4
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

listed() { sed -e 's/#.*//' -e '/^[[:space:]]*$/d' "$list"; }
# Copies one path of the root tree, and where it points if it is a symlink.
take() {
    [ -e "$root$1" ] || [ -L "$root$1" ] || { echo "initrd: the image has no $1" >&2; exit 1; }
    mkdir -p "$work/$(dirname "$1")"
    cp -a --no-clobber "$root$1" "$work$1" 2>/dev/null || true
    if [ -L "$root$1" ]; then take "$(realpath -m "$(dirname "$1")/$(readlink "$root$1")")"; fi
}
needed() { chroot "$root" ldd "$1" 2>/dev/null | grep -o '/[^ ]*\.so[^ ]*' | xargs -r -n1 realpath -ms | sed 's,^/lib,/usr/lib,' || true; }
# Dependencies of the "+" modules, in the order in which they load.
module_files() {
    sed -n 's/^+//p' "$modules" | while read -r m; do
        modprobe -d "$root" -S "$kernel" --show-depends "$m"
    done | sed -n 's,^insmod .*/\(lib/modules/[^ ]*\).*,/usr/\1,p' | sort -u
}

kernel=$(basename "$root"/usr/lib/modules/*)
mkdir -p "$work"/{usr/bin,usr/sbin,usr/lib64,etc/systemd/system,proc,sys,dev,run,tmp,var,sysroot}
for d in bin sbin lib lib64; do ln -s "usr/$d" "$work/$d"; done
listed | while read -r f; do
    take "$f"
    needed "$f" | while read -r lib; do take "$lib"; done
done
module_files | while read -r m; do take "$m"; done
take "/usr/lib/modules/$kernel/modules.builtin"
for f in order builtin.modinfo; do take "/usr/lib/modules/$kernel/modules.$f"; done
depmod -b "$work" "$kernel"
mkdir -p "$work/etc/modules-load.d"
sed -n 's/^+//p' "$modules" >"$work/etc/modules-load.d/initrd.conf"
cp -a "$(dirname "$list")/../initrd/." "$work/"
ln -s ../usr/lib/os-release "$work/etc/initrd-release"
ln -s usr/lib/systemd/systemd "$work/init"
: >"$work/etc/machine-id"

find "$work" -exec touch -hd "@$SOURCE_DATE_EPOCH" {} +
(cd "$work" && find . -mindepth 1 -printf '%P\0' | LC_ALL=C sort -z |
    cpio --quiet --null --reproducible -o -H newc -R 0:0) | zstd -q -19 -T0 >"$out"
du -h --apparent-size "$out" >&2
