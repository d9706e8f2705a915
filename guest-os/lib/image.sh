# SPDX-License-Identifier: Apache-2.0
# From Debian packages to root.img and guest.efi.

# The newest cloud kernel of trixie-backports (>= 6.16 has RTMR extension; its config has INTEL_TDX_GUEST).
newest_kernel() {
    in_tree apt-get -qq update || die "apt-get update failed in the build tree: is $mirror in reach?"
    in_tree apt-cache depends -qq linux-modules-cloud-amd64/trixie-backports |
        sed -n 's/.*Depends: linux-modules-\([0-9].*-cloud-amd64\)$/\1/p' | head -1
}

# mkosi's own sources name debian's debug archive too; these take DEBIAN_MIRROR.
apt_sources() {
    local dir=$work/sandbox/etc/apt/sources.list.d
    mkdir -p "$dir"
    sed "s,@MIRROR@,$mirror," "$here/apt.sources" >"$dir/mkosi.sources"
}

# The root tree in $work/out/root. Without a dstack-guest package it is a bare image that boots to Docker.
build_root() {
    local kernel extra=()
    profiles=$profile
    work=$store/work-$profile
    mkdir -p "$work"/{out,cache,debs} "$store/packages"
    rm -f "$work"/debs/*
    guest_debs | xargs -r cp -t "$work/debs"
    apt_sources
    kernel=$(newest_kernel)
    [ -n "$kernel" ] || die "trixie-backports has no cloud kernel"
    if [ -n "$(guest_debs)" ]; then
        extra=(--volatile-package-directory /work/debs --volatile-package dstack-guest)
    else
        say "no --debs: building a bare image, without dstack-guest"
        profiles+=,bare
    fi
    say "building the root tree with mkosi (profile $profiles, kernel $kernel; log: $work/mkosi.log)"
    in_tree mkosi --directory /src --profile "$profiles" --sandbox-tree /work/sandbox --output-dir /work/out --cache-dir /work/cache \
        --package-cache-dir /packages --workspace-dir /work --source-date-epoch "$SOURCE_DATE_EPOCH" \
        --environment "IMAGE_VERSION=$version" --environment "IMAGE_PROFILE=$profile" \
        --package "linux-binary-$kernel" --package "linux-modules-$kernel" "${extra[@]}" \
        -f build >"$work/mkosi.log" 2>&1 || { tail -n 25 "$work/mkosi.log" >&2 && die "mkosi failed"; }
}

assemble_image() {
    rm -rf "$work/img" && mkdir -p "$work/img"
    say "assembling initrd, erofs, verity tree and UKI"
    in_tree env PROFILES="$profiles" /src/lib/assemble.sh /work/out/root /work/img || die "assembling failed"
    metadata "$work/img"
    rm -rf "$image" && mv "$work/img" "$image"
}
