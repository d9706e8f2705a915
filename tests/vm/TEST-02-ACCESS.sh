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
