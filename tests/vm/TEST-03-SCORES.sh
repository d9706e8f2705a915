#!/bin/bash
# Needs: packages
# How much each unit could do if it were taken over: `systemd-analyze security`, thresholds of the design
# (host daemons and VM units 2.0, passt's 2.5, the guest's 3.0).
set -eu
. "$(dirname "$0")/lib/check.sh"

needs_packages
must "apt install dstack-testroot" apt_install dstack-testroot

# threshold UNIT WHERE: ten times the highest allowed exposure.
threshold() {
    case $2:$1 in
    guest:*) echo 30 ;;
    *:dstack-vm-net@*) echo 25 ;;
    *) echo 20 ;;
    esac
}

# units ROOT: the service files of dstack below ROOT.
units() { in_host_sh 'cd "$1/usr/lib/systemd/system" && ls -1 dstack*.service 2>/dev/null' "$1"; }

score() {
    local where=$1 root=$2 unit=$3 limit
    limit=$(threshold "$unit" "$where")
    check "$where $unit at most $limit" in_host systemd-analyze security --offline=true --no-pager \
        --root="$root" --threshold="$limit" "${unit/@./@x.}"
    TABLE+="$(printf '    %-6s %-36s %s' "$where" "$unit" "$(grep -o 'Overall exposure.*' <<<"$REPLY" | grep -oE '[0-9.]+ [A-Z]+' | head -n 1)")"$'\n'
}

TABLE=
must "the host's units are there" matches dstack-teepod.service units /
for unit in $(units /); do score host / "$unit"; done

if compgen -G "$DEBS/dstack-guest_*.deb" >/dev/null; then
    in_host_sh 'rm -rf /tmp/guest && cp -a --parents /usr/lib/systemd /tmp/ 2>/dev/null || :
        mkdir -p /tmp/guest && dpkg-deb -x /srv/dstack/apt/dstack-guest_*.deb /tmp/guest'
    must "the guest's units are there" matches dstack units /tmp/guest
    for unit in $(units /tmp/guest); do score guest /tmp/guest "$unit"; done
else
    check "the package dstack-guest is built" false
fi
printf '%s' "$TABLE"
