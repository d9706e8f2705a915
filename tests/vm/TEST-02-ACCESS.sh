#!/bin/bash
# Needs: packages
# Who may do what on the bus: reading is free, changing asks polkit, the group dstack-admin may.
set -eu
. "$(dirname "$0")/lib/check.sh"
. "$VM_DIR/lib/app.sh"

DENIED='AccessDenied|Access denied|InteractiveAuthorizationRequired|[Ii]nteractive authentication|not authorized'

needs_packages
in_host_sh 'usermod -aG dstack-admin bob && gpasswd -d alice dstack-admin 2>/dev/null || :'

check "busctl introspect by an ordinary user" matches 'org\.dstack\.teepod1\.Manager' \
    in_host_as alice busctl introspect org.dstack.teepod1 /org/dstack/teepod1
for member in CreateVm StartVm StopVm KillVm RestartVm RemoveVm UpgradeApp ResizeVm ListVms GetVm GetAppCompose OpenConsole \
    ListImages ImportImage RemoveImage JobNew JobRemoved; do
    check "the interface has $member" matches "^\.$member " \
        in_host_as alice busctl introspect org.dstack.teepod1 /org/dstack/teepod1 org.dstack.teepod1.Manager
done
check "an ordinary user lists VMs" teepod_as alice ListVms
check "an ordinary user lists images" teepod_as alice ListImages
check "an ordinary user reads properties" in_host_as alice busctl get-property org.dstack.teepod1 \
    /org/dstack/teepod1 org.dstack.teepod1.Manager Version
check "dstackctl vm list as an ordinary user" in_host_as alice dstackctl vm list

for verb in StartVm StopVm KillVm RestartVm RemoveVm; do
    refused "$verb by an ordinary user" "$DENIED" teepod_as alice "$verb" s nosuch
done
refused "StopVm over dstackctl says what is needed" "dstack-admin|authoriz|permission" \
    in_host_as alice dstackctl --no-ask-password vm stop nosuch
for verb in StartVm StopVm KillVm RemoveVm; do
    refused "$verb by the group dstack-admin reaches the daemon" "NoSuchVm|no VM" teepod_as bob "$verb" s nosuch
done
refused "an ordinary user cannot own teepod's name" "Access denied|AccessDenied|not allowed" \
    in_host_as alice busctl call org.freedesktop.DBus /org/freedesktop/DBus org.freedesktop.DBus RequestName su org.dstack.teepod1 0
refused "an ordinary user cannot start a VM's unit" "$DENIED" in_host_as alice systemctl --no-ask-password start dstack-vm@x.service
refused "teepod's user may not start other units" "$DENIED" \
    in_host_as dstack-teepod systemctl --no-ask-password start systemd-machined.service
refused "teepod's user may not run transient units" "$DENIED" \
    in_host_as dstack-teepod systemd-run --no-ask-password --wait true
refused "an ordinary user cannot read teepod's state" "Permission denied" in_host_as alice ls /var/lib/dstack
check "a wrong token gets 401" equals 401 in_host curl -s -o /dev/null -w '%{http_code}' -H 'Authorization: Bearer wrong' -X POST http://127.0.0.1:9080/prpc/Teepod.Status

# --- another host, over ssh -----------------------------------------------------------------------
remote() { in_host dstackctl --no-ask-password -H "$@"; }
must "an ssh server, and a key for two users" in_host_sh 'systemctl start ssh.service
    mkdir -p /root/.ssh; [ -e /root/.ssh/id_ed25519 ] || ssh-keygen -q -N "" -t ed25519 -f /root/.ssh/id_ed25519
    for u in alice bob; do install -d -m 700 -o $u -g $u /home/$u/.ssh
        install -m 600 -o $u -g $u /root/.ssh/id_ed25519.pub /home/$u/.ssh/authorized_keys; done
    ssh-keyscan -t ed25519 localhost >/root/.ssh/known_hosts 2>/dev/null; ssh -o BatchMode=yes alice@localhost true'
check "dstackctl -H lists that host's VMs" equals "[]" remote alice@localhost --json vm list
refused "and does there what its user may: not alice" "$DENIED|dstack-admin" remote alice@localhost vm stop nosuch
refused "but bob of the group dstack-admin" "NoSuchVm|no VM" remote bob@localhost vm stop nosuch
refused "a host that cannot be reached is named" 'cannot reach nobody@localhost over ssh' remote nobody@localhost vm list
check "stop the ssh server" in_host systemctl stop ssh.service
