# SPDX-License-Identifier: Apache-2.0
# The build tree: a small Debian 13 in which mkosi and the image tools run, whatever the host is.

mirror=${DEBIAN_MIRROR:-http://deb.debian.org/debian}
tree_packages=apt,bubblewrap,ca-certificates,cpio,cryptsetup-bin,debian-archive-keyring,dpkg-dev,erofs-utils,kmod,mkosi,python3-pefile,reprepro
tree_packages+=,systemd-boot-efi,systemd-container,systemd-ukify,xz-utils,zstd

tree_name() { echo "tree-$(echo "$tree_packages $mirror" | sha256sum | cut -c1-12)"; }

make_tree() {
    tree=$store/$(tree_name)
    [ ! -e "$tree/.complete" ] || return 0
    say "making the build tree (Debian 13 with mkosi, about a minute)"
    rm -rf "$tree"
    mmdebstrap --quiet --variant=minbase --keyring="$keyring" --include="$tree_packages" trixie "$tree" \
        "deb $mirror trixie main" "deb $mirror trixie-updates main" "deb $mirror trixie-backports main" ||
        die "mmdebstrap failed: is $mirror in reach?"
    touch "$tree/.complete"
}

# Runs a command in the build tree, with guest-os at /src and the work directory at /work.
in_tree() {
    systemd-nspawn -q -D "$tree" --register=no --keep-unit --as-pid2 --pipe --resolv-conf=copy-host \
        --capability=all --system-call-filter='@mount @privileged bpf keyctl add_key' \
        --bind-ro="$here:/src" --bind="$work:/work" --bind="$store/packages:/packages" --chdir=/work \
        --setenv=SOURCE_DATE_EPOCH="$SOURCE_DATE_EPOCH" "$@" 2> >(grep -v 'propagate/' >&2)
}
