# VMs and apps from a test's side: teepod's bus, dstackctl, pages. Needs check.sh.
# shellcheck shell=bash

REGISTRY=registry.test:5000
MANAGER=(org.dstack.teepod1 /org/dstack/teepod1 org.dstack.teepod1.Manager)

# teepod_as USER METHOD [SIGNATURE ARG…]: one bus call to teepod; an error with its name, which busctl
# tells only in its debug messages.
teepod_as() {
    local user=$1
    shift
    in_host_as "$user" sh -c 'if ! out=$(SYSTEMD_LOG_LEVEL=debug busctl --timeout=50 call "$@" 2>&1); then
        printf "%s\n" "$out" | grep -o "error-name=org[^ ]*" | tail -n 1; printf "%s\n" "$out" | grep "^Call failed"; exit 1; fi
        printf "%s\n" "$out" | tail -n 1' sh "${MANAGER[@]}" "$@"
}

teepod() { teepod_as root "$@"; }

# deploy COMPOSE NAME [OPTION…]: waits until the app answers.
deploy() {
    local compose=$1 name=$2
    shift 2
    HOST_TIMEOUT=${BOOT_TIMEOUT:-420} in_host dstackctl deploy "$compose" --name "$name" \
        --registry-insecure "$REGISTRY" "$@"
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
    must "apt install dstack-guest-image" apt_install dstack-guest-image
}

# vm_remove NAME…: end and forget, at the end of a test.
vm_remove() {
    local name
    for name in "$@"; do HOST_TIMEOUT=120 in_host dstackctl vm remove --force "$name" || return; done
}

# compose_json NAME [COMPOSE]: an app-compose.json with the text of a compose file.
compose_json() {
    jq -nc --arg name "$1" --rawfile yaml "${2:-$TOP/examples/hello/docker-compose.yaml}" --arg registry "$REGISTRY" \
        '{manifest_version: 2, name: $name, runner: "docker-compose", docker_compose_file: $yaml,
          kms_enabled: false, tproxy_enabled: false, public_logs: true, public_sysinfo: true,
          insecure_registries: [$registry]}'
}

# create NAME JSON [KEY SIGNATURE VALUE…]…: CreateVm on the bus; options as busctl writes them, one word
# list per option, e.g. create a "$json" "start b false" "vcpus u 1".
create() { create_as root "$@"; }

create_as() {
    local user=$1 name=$2 bytes words=()
    bytes=$(printf '%s' "$3" | od -An -v -tu1)
    shift 3
    # shellcheck disable=SC2206 # words are wanted
    words=($bytes)
    # shellcheck disable=SC2048,SC2086
    teepod_as "$user" CreateVm 'saya{sv}' "$name" "${#words[@]}" "${words[@]}" "$#" $*
}

# vms: the names of all VMs, sorted.
vms() { in_host_sh 'all=$(busctl --json=short call "$@"); printf "%s" "$all" | jq -r ".data[0][][0]" | sort' "${MANAGER[@]}" ListVms; }

# vm_state NAME: its state on the bus.
vm_state() { in_host_sh 'n=$1; shift; busctl --json=short call "$@" | jq -r --arg n "$n" ".data[0][] | select(.[0] == \$n) | .[3]"' \
    "$1" "${MANAGER[@]}" ListVms; }
