# SPDX-License-Identifier: Apache-2.0
# The image directory as teepod reads it: metadata.json and sha256sum.txt.

# Writes both into $1, and removes the notes that assemble.sh left there.
metadata() {
    local is_dev=false
    [ "$profile" = prod ] || is_dev=true
    cat >"$1/metadata.json" <<EOF
{
  "name": "$name",
  "version": "$version",
  "is_dev": $is_dev,
  "uki": "guest.efi",
  "root": "root.img",
  "verity": null,
  "root_hash": "$(cat "$1/root.hash")",
  "firmware": null,
  "kernel_version": "$(cat "$1/kernel.txt")",
  "cmdline": "$(cat "$1/cmdline.txt")",
  "built_with": "Debian 13, $(in_tree mkosi --version | tr -d '\r')"
}
EOF
    cp "$work/out/root.manifest" "$1/packages.json"
    rm -f "$1/root.hash" "$1/kernel.txt" "$1/cmdline.txt"
    chmod 0644 "$1"/*
    (cd "$1" && LC_ALL=C sha256sum -- * >../sha256sum.new && mv ../sha256sum.new sha256sum.txt)
}

# Copies the finished image $1 to $2 unless it is there already.
publish() {
    if ! cmp -s "$1/sha256sum.txt" "$2/sha256sum.txt"; then
        rm -rf "$2.new" && mkdir -p "$2.new"
        cp --reflink=auto --preserve=mode,timestamps "$1"/* "$2.new/"
        rm -rf "$2" && mv "$2.new" "$2"
    fi
    say "$2: $(du -sh --apparent-size "$2" | cut -f1), os_image_hash $(sha256sum <"$2/sha256sum.txt" | cut -d' ' -f1)"
}
