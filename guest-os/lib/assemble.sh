#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# assemble.sh ROOT OUT: root.img (erofs with its verity tree behind it) and guest.efi (UKI) in OUT.
# Runs inside the build tree, with this directory at /src. Environment: SOURCE_DATE_EPOCH, PROFILES.
set -euo pipefail
root=$1 out=$2
src=$(dirname "$(dirname "$(realpath "$0")")")
kernel=$(basename "$root"/usr/lib/modules/*)
# Fixed, so that equal trees give equal images. Neither needs to be secret or random.
uuid=64737461-636b-4775-6573-7420726f6f74
salt=64737461636b206775657374206f7320726f6f74206861736820747265652030

echo "assemble: initrd"
"$src/lib/initrd.sh" "$root" "$src" "$out/initrd"

echo "assemble: erofs"
vmlinuz=$(mktemp)
mv "$root/usr/lib/modules/$kernel/vmlinuz" "$vmlinuz"
rm -f "$out/root.img"
# With SOURCE_DATE_EPOCH in the environment mkfs.erofs would keep older times of files.
env -u SOURCE_DATE_EPOCH mkfs.erofs --quiet -zlz4 -C65536 -T"$SOURCE_DATE_EPOCH" --all-time -U"$uuid" "$out/root.img" "$root"
truncate -s %4096 "$out/root.img"
size=$(stat -c %s "$out/root.img")

echo "assemble: verity tree behind $size bytes"
veritysetup format "$out/root.img" "$out/root.img" --hash-offset="$size" --data-blocks=$((size / 4096)) \
    --uuid="$uuid" --salt="$salt" --root-hash-file="$out/root.hash" >/dev/null

echo "assemble: UKI"
# The common command line, then those of the profiles; comments and empty lines left out.
words() {
    local f
    for f in cmdline $(printf 'mkosi.profiles/%s/cmdline ' ${PROFILES//,/ }); do
        [ ! -e "$src/$f" ] || sed -e 's/#.*//' -e '/^$/d' "$src/$f"
    done | paste -sd' '
}
cmdline="$(words) roothash=$(cat "$out/root.hash") dstack.hash_offset=$size"
ukify build --linux="$vmlinuz" --initrd="$out/initrd" --cmdline="$cmdline" --uname="$kernel" \
    --os-release="@$root/usr/lib/os-release" --output="$out/guest.efi" >/dev/null
rm -f "$vmlinuz" "$out/initrd"
echo "$cmdline" >"$out/cmdline.txt"
echo "$kernel" >"$out/kernel.txt"
