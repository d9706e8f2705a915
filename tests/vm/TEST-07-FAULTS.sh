#!/bin/bash
# Needs: packages image
# Timeout: 1200
# Bad input and faults: each a named error with a remedy, and nothing left behind.
set -eu
. "$(dirname "$0")/lib/check.sh"
. "$VM_DIR/lib/app.sh"

needs_image
check "teepod has found out its platform" eventually 60 matches '"(tdx|kvm|tcg)"' \
    in_host busctl get-property "${MANAGER[@]}" Platform
JSON=$(compose_json hello)
STATE=/var/lib/dstack
DROPIN=/etc/dstack/teepod.toml.d/90-bench.toml

# left: everything that teepod keeps, to compare before and after.
left() { in_host_sh 'find "$1" /var/lib/private /run/dstack* -not -path "*/images/*" 2>/dev/null | sort; ss -Hltn | sort; pgrep -a qemu || :' "$STATE"; }

# named WHAT ERROR COMMAND…: fails with that error of teepod, says something, and leaves nothing.
named() {
    local what=$1 error=$2 before
    shift 2
    before=$(left)
    refused "$what: $error" "$error" "$@"
    check "$what: leaves nothing behind" unchanged "$before" left
}

# configure TEXT: teepod with these settings; none removes them.
configure() {
    in_host_sh 'mkdir -p "${1%/*}"; if [ -n "$2" ]; then printf "%s\n" "$2" >"$1"; else rm -f "$1"; fi
        systemctl reset-failed dstack-teepod.service; systemctl restart dstack-teepod.service' "$DROPIN" "${1:-}"
}

# --- what comes in by CreateVm --------------------------------------------------------------------
named "not JSON" InvalidCompose create bad '{'
named "JSON of another kind" InvalidCompose create bad '[1]'
named "no compose file inside" InvalidCompose create bad '{"manifest_version":2,"name":"x","runner":"docker-compose"}'
named "an unknown runner" InvalidCompose create bad "$(jq -c '.runner = "exe"' <<<"$JSON")"
named "an unknown image" NoSuchImage create bad "$JSON" "image s nosuch-9.9.9"
named "an image outside the directory" "InvalidArgument|NoSuchImage" create bad "$JSON" "image s ../../etc"
for name in '' Upper a_b ../x 'a/b' "$(printf 'a%.0s' $(seq 31))"; do
    named "the name '$name'" InvalidArgument create "$name" "$JSON"
done
named "no memory" "InvalidArgument|LimitExceeded" create bad "$JSON" "memory t 1"
named "no CPU" "InvalidArgument|LimitExceeded" create bad "$JSON" "vcpus u 0"
named "a thousand CPUs" "InvalidArgument|LimitExceeded" create bad "$JSON" "vcpus u 1000"
named "a disk larger than any" "InvalidArgument|LimitExceeded|NoSpace" create bad "$JSON" "disk t 18446744073709551615"
named "an unknown option" InvalidArgument create bad "$JSON" "colour s red"
named "an option of another type" InvalidArgument create bad "$JSON" "vcpus s two"
named "a port outside the range" PortNotAllowed create bad "$JSON" "ports a(ssqq) 1 tcp 127.0.0.1 22 80"
named "an unknown protocol" InvalidArgument create bad "$JSON" "ports a(ssqq) 1 sctp 127.0.0.1 8200 80"
named "one port twice" "PortInUse|InvalidArgument" create bad "$JSON" "ports a(ssqq) 2 tcp 127.0.0.1 8200 80 tcp 127.0.0.1 8200 81"
named "an app id out of form" InvalidArgument create bad "$JSON" "app_id s xyz"

must "a VM that is not started" create first "$JSON" "start b false" "ports a(ssqq) 1 tcp 127.0.0.1 8200 80"
check "is stopped" equals stopped vm_state first
named "a taken name" VmExists create first "$JSON" "start b false"
named "another VM's port" PortInUse create bad "$JSON" "start b false" "ports a(ssqq) 1 tcp 127.0.0.1 8200 80"
in_host systemd-run -q --collect -p SuccessExitStatus=143 --unit=squatter socat TCP-LISTEN:8201,bind=127.0.0.1,fork /dev/null
named "another process's port" PortInUse create bad "$JSON" "ports a(ssqq) 1 tcp 127.0.0.1 8201 80"
in_host systemctl stop squatter
refused "a disk does not shrink" "DiskShrink|InvalidArgument" teepod ResizeVm 'sa{sv}' first 1 disk t 67108864
IMAGE=$(in_host_sh 'busctl --json=short call "$@" ListImages | jq -r ".data[0][0][0]"' "${MANAGER[@]}")
refused "an image in use is not removed" ImageInUse teepod RemoveImage s "$IMAGE"
refused "a console of a stopped VM" VmNotRunning teepod OpenConsole s first
check "a VM is removed" teepod RemoveVm s first
check "and gone" eventually 20 equals "" vms

# --- dstackctl's side -----------------------------------------------------------------------------
in_host_sh 'printf "services: [" >/tmp/bad.yaml; printf "services: {}\n" >/tmp/empty.yaml'
refused "a compose file that is not YAML names the file" 'bad.yaml: .*not valid YAML: .*line 1' in_host dstackctl deploy /tmp/bad.yaml --name bad
refused "a compose file without services" 'services' in_host dstackctl deploy /tmp/empty.yaml --name bad
refused "a compose file that is not there" 'nosuch\.yaml' in_host dstackctl deploy /tmp/nosuch.yaml --name bad
check "none of them made a VM" equals "" vms

# --- no free CID ----------------------------------------------------------------------------------
check "teepod takes a pool of one CID" configure $'[cvm]\ncid_pool_size = 1'
check "one VM starts" create one "$JSON" "memory t 1073741824"
eventually 20 matches 'starting|booting' vm_state one >/dev/null || :
refused "another has no CID" NoFreeCid create two "$JSON"
check "and is not there" equals one vms
check "kill it" teepod KillVm s one
check "it is stopped or failed" eventually 20 matches 'stopped|failed' vm_state one
check "remove it" teepod RemoveVm s one
check "nothing is left" eventually 20 equals "" vms

# --- configuration --------------------------------------------------------------------------------
configure $'[cvm]\ncid_pool_sise = 1' >/dev/null 2>&1 || :
check "a wrong key names file, key and what is allowed" matches '90-bench\.toml.*cid_pool_sise' \
    in_host_sh 'journalctl -q --no-pager -u dstack-teepod -n 30 -o cat | tr "\n" " "'
check "and without it teepod runs again" configure

# --- disk full ------------------------------------------------------------------------------------
check "a full state directory" in_host_sh 'systemctl stop dstack-teepod.service; d=$1/teepod/vms
    mount -t tmpfs -o size=64k,mode=700,uid=$(id -u dstack-teepod) tmpfs "$d"; dd if=/dev/zero of="$d/.fill" bs=4k 2>/dev/null || :' "$STATE"
refused "a VM on it: NoSpace" "NoSpace|No space" create full "$JSON" "start b false"
check "and the room again" in_host_sh 'systemctl stop dstack-teepod.service; umount "$1/teepod/vms"; systemctl start dstack-teepod.service' "$STATE"
check "nothing is left of it" equals "" vms

# --- unreadable state -----------------------------------------------------------------------------
check "a VM" create good "$JSON" "start b false"
check "and another" create broken "$JSON" "start b false"
RECORD=$STATE/teepod/vms/broken/record.json
check "one state file is broken" in_host_sh 'test -s "$1"; systemctl stop dstack-teepod.service; echo "{ broken" >"$1"
    systemctl start dstack-teepod.service' "$RECORD"
check "the good one is there" equals stopped vm_state good
refused "the broken one is named, not taken for absent" "StateUnreadable" teepod StartVm s broken
refused "its name stays taken" "VmExists|StateUnreadable" create broken "$JSON" "start b false"
check "its file is left as it was" in_host grep -qx "{ broken" "$RECORD"
check "the journal says which file" matches 'broken' in_host journalctl -q --no-pager -u dstack-teepod -n 50 -o cat
refused "it is not removed either" StateUnreadable teepod RemoveVm s broken
check "moved away by hand, it is gone" in_host_sh 'systemctl stop dstack-teepod.service; rm -r "${1%/*}"; systemctl start dstack-teepod.service' "$RECORD"
check "the good one too" teepod RemoveVm s good
check "nothing is left" eventually 20 equals "" vms

# --- 50 at once -----------------------------------------------------------------------------------
fifty() {
    local bytes
    bytes=$(printf '%s' "$JSON" | od -An -v -tu1 | tr -s ' \n' ' ')
    HOST_TIMEOUT=120 in_host_sh 'bytes=$1; n=$2; shift 2; i=0; pids=
        while [ $i -lt 50 ]; do i=$((i + 1)); busctl --timeout=100 call "$@" CreateVm "saya{sv}" "many$i" $n $bytes 1 start b false >/dev/null & pids="$pids $!"; done
        for p in $pids; do wait $p; done' "$bytes" "${#JSON}" "${MANAGER[@]}"
}
JSON=$(compose_json hello | jq -c '.docker_compose_file = "services: {a: {image: b}}"')
check "50 CreateVm calls at once" fifty
check "make 50 VMs" equals 50 in_host_sh 'busctl --json=short call "$@" | jq ".data[0] | length"' "${MANAGER[@]}" ListVms
check "with 50 ids" equals 50 in_host_sh 'busctl --json=short call "$@" | jq -r ".data[0][][1]" | sort -u | wc -l' "${MANAGER[@]}" ListVms
check "which a restart of teepod keeps" equals 50 in_host_sh 'systemctl restart dstack-teepod; busctl --json=short call "$@" | jq ".data[0] | length"' "${MANAGER[@]}" ListVms
check "50 RemoveVm calls" in_host_sh 'for i in $(seq 50); do busctl call "$@" RemoveVm s "many$i" >/dev/null; done' "${MANAGER[@]}"
check "remove 50 VMs" eventually 60 equals "" vms

# --- teepod killed while it creates ---------------------------------------------------------------
killed_creating() {
    local delay
    for delay in 0.005 0.01 0.02 0.04 0.08 0.15 0.3; do
        # Starts by hand count for the unit's limit, too, and this test makes more of them than it allows.
        in_host systemctl reset-failed dstack-teepod.service dstack-teepod.socket
        in_host_sh '(busctl --timeout=20 call "$@" >/dev/null 2>&1 || :) & sleep '"$delay"'; systemctl kill -s KILL dstack-teepod.service; wait' \
            "${MANAGER[@]}" CreateVm 'saya{sv}' "killed" "${#JSON}" $(printf '%s' "$JSON" | od -An -v -tu1) 1 start b false
        eventually 20 vms >/dev/null || return
        case $(vms) in
        '') ;;
        killed) teepod RemoveVm s killed && eventually 20 equals "" vms || return ;;
        *) vms && return 1 ;;
        esac
    done
}
no_many() { in_host_sh '! ls -d /var/lib/private/dstack-vm/many* 2>/dev/null'; }
check "and their directories" eventually 20 no_many
EMPTY=$(left)
check "teepod killed at any moment of CreateVm: the VM is there or not" killed_creating
check "and nothing is left" eventually 20 unchanged "$EMPTY" left

# --- guests that do not come up -------------------------------------------------------------------
in_host_sh 'printf "services:\n  web:\n    image: registry.test:5000/nosuch:1\n" >/tmp/nosuch.yaml'
HOST_TIMEOUT=500 refused "an app whose image is not there: the deploy says so" "image|pull|app" \
    in_host dstackctl deploy /tmp/nosuch.yaml --name never --key-provider none --registry-insecure "$REGISTRY"
check "the VM says why" matches 'never' in_host dstackctl vm list
check "it is removed" vm_remove never
check "no unit is left failed" in_host_sh 'systemctl reset-failed "dstack-vm@never.service" 2>/dev/null || :; systemctl --failed --no-legend --plain | grep -c dstack | grep -qx 0'
