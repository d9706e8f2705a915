# VMs and apps from a test's side: teepod's bus, dstackctl, pages. Needs check.sh.
# shellcheck shell=bash

REGISTRY=registry.test:5000
MANAGER=(org.dstack.teepod1 /org/dstack/teepod1 org.dstack.teepod1.Manager)

# teepod_as USER METHOD [SIGNATURE ARG…]: one bus call to teepod.
teepod_as() {
    local user=$1
    shift
    in_host_as "$user" busctl --timeout=50 call "${MANAGER[@]}" "$@"
}

teepod() { teepod_as root "$@"; }

# deploy COMPOSE NAME [OPTION…]: waits until the app answers.
deploy() {
    local compose=$1 name=$2
    shift 2
    HOST_TIMEOUT=${BOOT_TIMEOUT:-420} in_host dstackctl deploy "$compose" --name "$name" \
        --insecure-registry "$REGISTRY" "$@"
}

unit_of() { echo "dstack-vm@$1.service"; }

# vm_is STATE NAME: what the unit says.
vm_is() { equals "$1" in_host systemctl show -P ActiveState "$(unit_of "$2")"; }

main_pid() { in_host systemctl show -P MainPID "$(unit_of "$1")"; }

# page PORT [PATH]: what the app answers on a host port.
page() { in_host curl -sS -f --max-time 10 "http://127.0.0.1:$1${2:-/}"; }

# count_of PORT: the counter on the hello page.
count_of() { page "$1" | sed -n 's/.*count: \([0-9]*\).*/\1/p'; }

# needs_image: this test boots guests.
needs_image() {
    needs_packages
    in_host_sh 'dpkg-query -W -f "\${db:Status-Status}" dstack-guest-image 2>/dev/null | grep -qx installed' && return
    [ -e /dev/vhost-vsock ] || must "apt install vhost-device-vsock" apt_install vhost-device-vsock
    must "apt install dstack-guest-image" apt_install dstack-guest-image
}

# vm_remove NAME…: end and forget, at the end of a test.
vm_remove() {
    local name
    for name in "$@"; do HOST_TIMEOUT=120 in_host dstackctl vm remove --force "$name" || return; done
}
