# SPDX-License-Identifier: Apache-2.0
# Helpers of guest-os/build: messages, needs, versions, and the hash of all inputs.

say() { printf 'guest-os: [%3ds] %s\n' "$SECONDS" "$*" >&2; }
die() { printf 'guest-os: %s\n' "$*" >&2 && exit 1; }

need_root() { [ "$(id -u)" = 0 ] || die "building an image needs root (owners and mounts): run it with sudo"; }
need_tools() {
    local t missing=''
    for t in mmdebstrap:mmdebstrap systemd-nspawn:systemd-container flock:util-linux sha256sum:coreutils; do
        command -v "${t%%:*}" >/dev/null || missing+=" ${t##*:}"
    done
    [ -z "$missing" ] || die "missing programs; run: apt install$missing"
    [ -r "$keyring" ] || die "no Debian archive key; run: apt install debian-archive-keyring"
}
keyring=/usr/share/keyrings/debian-archive-keyring.gpg

workspace_version() { sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' "$here/../Cargo.toml"; }
# Date of the last commit that touched the image, so that a checkout builds the same bytes anywhere.
source_date() {
    local t
    t=$(git -c safe.directory="*" -C "$here" log -1 --format=%ct -- . ':!ingress' ':!lib/oci.sh' 2>/dev/null) || t=''
    echo "${t:-1735689600}"
}

# The newest dstack-guest package in --debs.
guest_debs() { [ -z "$debs" ] || find "$(realpath "$debs")" -maxdepth 1 -name 'dstack-guest_*_amd64.deb' | sort -V | tail -n 1; }
# Everything that decides the bytes of the image, except what Debian serves (see --refresh).
input_hash() {
    {
        echo "$profile $version $SOURCE_DATE_EPOCH $(tree_name)"
        find "$here" -mindepth 1 ! -name '*.md' ! -path "$here/ingress*" ! -name oci.sh \( -type f -exec sha256sum {} + -o -type l -printf '%p %l\n' \) | sed "s,$here/,," | sort
        guest_debs | xargs -r sha256sum | sed 's, .*/, ,'
    } | sha256sum | cut -c1-20
}
