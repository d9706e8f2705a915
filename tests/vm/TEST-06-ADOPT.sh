#!/bin/bash
# Needs: packages image
# Timeout: 1800
# VMs outlive teepod: its SIGKILL, an upgrade; a removal says so and stops them in order.
set -eu
. "$(dirname "$0")/lib/check.sh"
. "$VM_DIR/lib/app.sh"

COMPOSE=/srv/dstack/examples/hello/docker-compose.yaml
VMS="one two three"

needs_image

pids() { for vm in $VMS; do main_pid "$vm"; done; }
states() { in_host_sh 'dstackctl --json vm list | jq -r "if type == \"array\" then . else .vms end | sort_by(.name) | .[] | \"\(.name) \(.state)\""'; }
all_active() { for vm in $VMS; do vm_is active "$vm" || return; done; }
RUNNING=$'one running\nthree running\ntwo running'

port=8101
for vm in $VMS; do
    must "deploy $vm" in_host dstackctl --no-wait deploy "$COMPOSE" --name "$vm" --registry-insecure "$REGISTRY" -p "$port:80"
    port=$((port + 1))
done
TAIL=40 must "three VMs come up at once" eventually 700 all_active
must "teepod sees them running" eventually 10 equals "$RUNNING" states
BEFORE=$(pids)

# --- SIGKILL --------------------------------------------------------------------------------------
KILLED=$(in_host systemctl show -P MainPID dstack-teepod)
check "kill teepod with SIGKILL" in_host systemctl kill -s KILL dstack-teepod.service
check "the VMs do not notice" equals "$BEFORE" pids
check "teepod answers again and has adopted them" eventually 20 equals "$RUNNING" states
check "it is another process" in_host_sh '[ "$(systemctl show -P MainPID dstack-teepod)" != "$1" ]' "$KILLED"
for port in 8101 8102 8103; do check "the app on $port answers" matches Hello page "$port"; done
check "systemctl start of a running VM works while teepod is down" in_host_sh \
    'systemctl stop dstack-teepod.service; systemctl start dstack-vm@one.service'
HOST_TIMEOUT=150 check "an adopted VM stops" in_host dstackctl vm stop three
check "in order" vm_is inactive three
HOST_TIMEOUT=500 check "and starts again" in_host dstackctl vm start three
check "all run" equals "$RUNNING" states

# --- upgrade --------------------------------------------------------------------------------------
# bump: every package again, with a higher version.
bump() {
    local dir deb name
    dir=$(mktemp -d)
    for deb in "$DEBS"/*.deb; do
        name=$(basename "$deb")
        case $name in dstack-guest-image_*) continue ;; esac
        dpkg-deb -R "$deb" "$dir/tree"
        sed -i 's/^Version: .*/&+upgrade1/; s/\(dstack[a-z-]* (= [^)]*\))/\1+upgrade1)/g' "$dir/tree/DEBIAN/control"
        dpkg-deb --root-owner-group -Znone -b "$dir/tree" "$APT_DIR/upgrade1-$name" >/dev/null
        rm -rf "$dir/tree"
    done
    rmdir "$dir"
    repo_index "$APT_DIR"
}
BEFORE=$(pids)
VERSION=$(in_host dpkg-query -W -f '${Version}' dstack-teepod)
must "a newer version is in the repository" bump
HOST_TIMEOUT=240 check "apt upgrade with running VMs" in_host_sh 'export DEBIAN_FRONTEND=noninteractive; apt-get update -q && apt-get upgrade -q -y'
check "the new version is installed" equals "$VERSION+upgrade1" in_host dpkg-query -W -f '${Version}' dstack-teepod
check "the VMs did not notice" equals "$BEFORE" pids
check "the new teepod has adopted them" eventually 20 equals "$RUNNING" states
check "the sockets stayed open" equals active in_host systemctl is-active dstack-teepod.socket
for port in 8101 8102 8103; do check "the app on $port answers after the upgrade" matches Hello page "$port"; done
check "needrestart leaves VMs alone" matches 'dstack-\(vm' in_host_sh 'cat /etc/needrestart/conf.d/dstack*.conf'

# --- remove ---------------------------------------------------------------------------------------
REMOVED=
remove() { HOST_TIMEOUT=240 in_host_sh 'DEBIAN_FRONTEND=noninteractive apt-get remove -q -y dstack-teepod'; }
if check "apt remove with running VMs" remove; then REMOVED=$REPLY; fi
check "it says that it stops them" grep -qiE 'stop.*(VM|virtual machine)|(VM|virtual machine).*stop' <<<"$REMOVED"
check "none is left" equals "" in_host_sh 'pgrep -a "qemu|dstack-vm" || :'
check "they ended in order, not killed" in_host_sh \
    'for vm in one two three; do journalctl -q --no-pager _SYSTEMD_UNIT=init.scope UNIT=dstack-vm@$vm.service -o cat -n 5; done | tee /dev/stderr | grep -c "Deactivated successfully" | grep -qx 3'
check "their state stays for a reinstallation" in_host_sh 'ls -d /var/lib/dstack/* >/dev/null'
rm -f "$APT_DIR"/upgrade1-*
repo_index "$APT_DIR"
must "install again" apt_install --allow-downgrades dstack-host
check "the VMs are known again, stopped" eventually 20 equals "${RUNNING//running/stopped}" states
check "remove them" vm_remove $VMS
check "no unit failed" equals "" in_host systemctl --failed --no-legend --plain
