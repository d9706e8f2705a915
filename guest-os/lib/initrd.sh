#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# initrd.sh ROOT SRC OUT: the initrd (cpio, zstd) of SRC/initrd/init, the programs of the tree ROOT in SRC/lists/initrd
# with their libraries, and the modules marked "+" in SRC/lists/kernel-modules. Runs inside the build tree.
set -euo pipefail
root=$1 src=$2 out=$3
kernel=$(basename "$root"/usr/lib/modules/*)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

listed() { sed -e 's/#.*//' -e '/^[[:space:]]*$/d' "$src/lists/initrd"; }
modules() { sed -n 's/^+//p' "$src/lists/kernel-modules"; }
# Copies one path of the root tree, and where it points if it is a symlink.
take() {
    [ -e "$root$1" ] || [ -L "$root$1" ] || { echo "initrd: the image has no $1" >&2 && exit 1; }
    mkdir -p "$work/$(dirname "$1")"
    [ -e "$work$1" ] || [ -L "$work$1" ] || cp -a "$root$1" "$work$1"
    [ ! -L "$root$1" ] || take "$(realpath -ms "$(dirname "$1")/$(readlink "$root$1")")"
}
libraries() { chroot "$root" ldd "$1" | grep -o '/[^ ]*\.so[^ ]*' | xargs -r realpath -ms | sed 's,^/lib,/usr/lib,'; }
module_files() {
    modules | xargs -n1 modprobe -d "$root" -S "$kernel" --show-depends |
        sed -n 's,^insmod .*/\(lib/modules/[^ ]*\).*,/usr/\1,p' | sort -u
}

mkdir -p "$work"/{usr/bin,usr/sbin,usr/lib64,etc,proc,sys,dev,run,sysroot}
for d in bin sbin lib lib64; do ln -s "usr/$d" "$work/$d"; done
listed | while read -r f; do
    take "$f"
    libraries "$f" | while read -r lib; do take "$lib"; done
done
module_files | while read -r m; do take "$m"; done
for f in builtin builtin.modinfo order; do take "/usr/lib/modules/$kernel/modules.$f"; done
depmod -b "$work" "$kernel"
modules >"$work/etc/modules"
install -m 0755 "$src/initrd/init" "$work/init"

find "$work" -exec touch -hd "@$SOURCE_DATE_EPOCH" {} +
(cd "$work" && find . -mindepth 1 -printf '%P\0' | LC_ALL=C sort -z |
    cpio --quiet --null --reproducible -o -H newc -R 0:0) | zstd -q -19 -T1 >"$out"
