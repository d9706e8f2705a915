#!/bin/bash
# What the machine must have to build and test. Says at once everything that is missing, and installs
# it with apt when it may. Usage: deps.sh [build] [deb] [image] [vm] [unit] [lint]
set -eu -o pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# GROUP TEST PACKAGE: TEST is a command name, a pkg-config module (pc:) or a file (file:).
needs() {
    cat <<'TABLE'
build cc build-essential
build pkg-config pkg-config
build pc:openssl libssl-dev
build git git
deb dpkg-buildpackage dpkg-dev
deb dh debhelper
deb lintian lintian
deb file:/usr/include/systemd/sd-daemon.h libsystemd-dev
deb file:/usr/share/doc/fakeroot fakeroot
image mmdebstrap mmdebstrap
image systemd-nspawn systemd-container
image file:/usr/share/keyrings/debian-archive-keyring.gpg debian-archive-keyring
vm mmdebstrap mmdebstrap
vm systemd-nspawn systemd-container
vm file:/usr/share/keyrings/debian-archive-keyring.gpg debian-archive-keyring
vm dpkg-scanpackages dpkg-dev
vm nsenter util-linux
vm curl curl
vm jq jq
vm flock util-linux
vm ip iproute2
vm ssh openssh-client
vm mke2fs e2fsprogs
unit dbus-daemon dbus-daemon
unit ip iproute2
unit wireguard-go wireguard-go
unit openssl openssl
unit pebble pebble
unit file:/usr/sbin/knotd knot
unit kdig knot-dnsutils
TABLE
}

present() {
    case $1 in
    pc:*) pkg-config --exists "${1#pc:}" 2>/dev/null ;;
    file:*) [ -e "${1#file:}" ] ;;
    *) command -v "$1" >/dev/null ;;
    esac
}

rust_there() {
    local have want get="Get it from https://rustup.rs, or on Debian 13: apt install rustup && rustup default stable."
    command -v cargo >/dev/null || die "no Rust toolchain: cargo is not on the PATH. $get"
    have=$(rustc --version | cut -d ' ' -f 2)
    want=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$TOP/Cargo.toml")
    [ "$(printf '%s\n' "$want" "${have%%-*}" | sort -V | head -n 1)" = "$want" ] ||
        die "Rust $have is older than $want, which this needs. Run: rustup update stable"
}

missing() {
    local group test package
    needs | while read -r group test package; do
        case " $* " in *" $group "*) present "$test" || echo "$package" ;; esac
    done | sort -u
}

main() {
    local lack
    [ $# -gt 0 ] || set -- build deb image vm unit
    case " $* " in *\ build\ * | *\ unit\ * | *\ lint\ *) rust_there ;; esac
    lack=$(missing "$@" | paste -sd ' ')
    [ -n "$lack" ] || return 0
    say "missing here: $lack"
    command -v apt-get >/dev/null ||
        die "this is not a Debian or Ubuntu system. Install the above by your own means."
    [ "$(id -u)" = 0 ] || die "install them with: sudo apt-get install $lack"
    export DEBIAN_FRONTEND=noninteractive
    # shellcheck disable=SC2086 # a list of package names
    stage deps "installing $lack" sh -c \
        'apt-get install -y --no-install-recommends "$@" ||
         { apt-get update && apt-get install -y --no-install-recommends "$@"; }' sh $lack
    lack=$(missing "$@" | paste -sd ' ')
    [ -z "$lack" ] || die "still missing after the installation: $lack"
}
main "$@"
