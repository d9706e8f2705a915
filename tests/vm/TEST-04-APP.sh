#!/bin/bash
# Needs: packages image
# Timeout: 1500
# Lane: second
# A compose file becomes a running app in a real VM: one boot, many checks, then its ends.
set -eu
. "$(dirname "$0")/lib/check.sh"
. "$VM_DIR/lib/app.sh"

COMPOSE=/srv/dstack/tests/apps/board/docker-compose.yaml

wait_ready() { HOST_TIMEOUT=600 in_host_sh 'while :; do s=$(systemctl show -P ActiveState "$1"); case $s in
    active) exit 0;; failed|inactive) systemctl status --no-pager "$1"; exit 1;; esac; sleep 0.3; done' "$(unit_of board)"; }

count_grows() { local a b && a=$(count_of 8080) && sleep 2 && b=$(count_of 8080) && [ "$b" -gt "$a" ]; }

panic_restarts() {
    page 8083 >/dev/null 2>&1 || :
    eventually 180 in_host_sh 'p=$(systemctl show -P MainPID "$1"); [ "$p" != 0 ] && [ "$p" != "$2" ]' "$(unit_of board)" "$PID"
}

needs_image
in_host systemd-run -q --unit=host-loopback socat TCP-LISTEN:7777,bind=127.0.0.1,fork,reuseaddr /dev/null

# --- boot -----------------------------------------------------------------------------------------
must "deploy returns before the app is up with --no-wait" in_host dstackctl --no-wait deploy "$COMPOSE" \
    --name board --registry-insecure "$REGISTRY" --public-logs --public-sysinfo \
    --pre-launch-script "${COMPOSE%/*}/pre-launch.sh" \
    -c 2 -m 2G -p 8080:80 -p 8081:81 -p 8082:82 -p 8083:83 -p 8090:8090
check "its unit is activating, not active" eventually 15 equals activating in_host systemctl show -P ActiveState dstack-vm@board.service
check "the unit's status names the boot stage" eventually 120 matches '[a-z]' in_host systemctl show -P StatusText dstack-vm@board.service
check "machined knows the booting VM" eventually 30 matches '^board +vm ' in_host machinectl list --no-legend
check "the main process is dstack-vm, QEMU is its child" matches qemu in_host_sh \
    'cat /proc/$(systemctl show -P MainPID dstack-vm@board.service)/comm; ps -o args= --ppid $(systemctl show -P MainPID dstack-vm@board.service)'
check "the VM runs as a user of its own" matches '^vboard$' in_host_sh \
    'ps -o user:32= -p $(systemctl show -P MainPID dstack-vm@board.service)'
check "the state on the bus is booting or starting" matches 'booting|starting' in_host dstackctl --json vm list

TAIL=40 must "the unit becomes active" wait_ready
must "the page answers at that moment" matches 'Hello from a confidential VM' page 8080
say "boot took $(in_host_sh 'systemctl show -P ActiveEnterTimestampMonotonic -P InactiveExitTimestampMonotonic "$1" | paste -sd " " | awk "{ print (\$1 > \$2 ? \$1 - \$2 : \$2 - \$1) / 1e6 }"' "$(unit_of board)") s"

# --- the app --------------------------------------------------------------------------------------
check "both services share the volume: the count grows" eventually 20 count_grows
check "dstackctl vm list shows it running" matches 'board.*running' in_host dstackctl vm list
check "and as JSON" equals running in_host_sh 'dstackctl --json vm list | jq -r "if type == \"array\" then . else .vms end | .[] | select(.name == \"board\") | .state"'
check "systemctl says what it is" matches . in_host systemctl show -P StatusText dstack-vm@board.service
check "the console is in the journal, readable" in_host_sh \
    'journalctl -q --no-pager -u dstack-vm@board.service -o cat >/tmp/console; [ "$(wc -l </tmp/console)" -ge 3 ]; grep -q "^Ready; boot: qemu" /tmp/console; ! grep -q "blob data" /tmp/console'
check "a VM record names its VM" in_host_sh 'journalctl -q --no-pager DSTACK_VM=board -n 1 -o cat | grep -q . || journalctl -q --no-pager DSTACK_VM=$(dstackctl --json vm list | jq -r ".. | .id? // empty" | head -n 1) -n 1 -o cat | grep -q .'

check "the pre-launch script ran before the containers" eventually 60 matches 'set before' page 8082 /bench/mark

# --- T19, from inside a container -----------------------------------------------------------------
probes() { page 8082; }
check "t19 a container reaches the world" eventually 60 matches '^registry\.test:5000 open' probes
for target in 10.0.2.2:7777 192.0.2.1:7777 10.0.2.2:9080; do
    check "t19 a container does not reach the host's loopback by $target" matches "^$target closed" probes
done

# --- logs -----------------------------------------------------------------------------------------
wanted_lines() { bash "$VM_DIR/images/bench/root/bin/lines" once | sha256sum; }
got_lines() { in_host_sh 'curl -sS -f --max-time 50 "http://127.0.0.1:8090/logs/lines?text&bare&tail=all" | sha256sum'; }
check "all lines have come" eventually 180 equals "end of lines" in_host curl -sS -f "http://127.0.0.1:8090/logs/lines?text&bare&tail=1"
check "multi-byte, 100 KB and 10,000 lines arrive unchanged" equals "$(wanted_lines)" got_lines
check "tail=2 is the last two lines" equals $'line 10000\nend of lines' in_host curl -sS -f "http://127.0.0.1:8090/logs/lines?text&bare&tail=2"
check "without text, lines are JSON" in_host_sh 'curl -sS -f "http://127.0.0.1:8090/logs/lines?tail=3" | jq -es "length == 3" >/dev/null'
check "a container that is not there is named" matches 'no container .*nosuch' in_host curl -s http://127.0.0.1:8090/logs/nosuch
# follow: the line is written before the page that caused it has been answered.
follow() { in_host_sh '
    curl -sN --max-time 40 "http://127.0.0.1:8090/logs/talk?follow=true&text&bare&tail=0" >/tmp/follow & sleep 3
    token=token-$(date +%s%N); curl -sS -f "http://127.0.0.1:8081/cgi-bin/say?$token" >/dev/null
    began=$(date +%s%N)
    until grep -q "$token" /tmp/follow; do [ $(($(date +%s%N) - began)) -lt 10000000000 ]; sleep 0.02; done
    took=$((($(date +%s%N) - began) / 1000000)); kill $!; echo "$took ms"; [ "$took" -le 1000 ]'; }
check "follow=true delivers a new line within a second" follow
check "dstackctl logs shows a container's lines" matches 'counter: starts' in_host dstackctl logs board counter
check "dstackctl logs of the VM shows its console" matches . in_host dstackctl vm logs board
check "the guest's /metrics" matches '^[a-z_]+(\{.*\})? [0-9.e+]+$' in_host curl -sS -f http://127.0.0.1:8090/metrics
check "Worker.Version" matches version in_host curl -sS -f http://127.0.0.1:8090/prpc/Worker.Version
check "Worker.Info" matches app_id in_host curl -sS -f http://127.0.0.1:8090/prpc/Worker.Info

# --- limits of the bench --------------------------------------------------------------------------
skip_check "memory and CPU limits hold" "nspawn here has read-only cgroup controllers"
skip_check "DevicePolicy and IPAddressDeny hold" "not enforced inside nspawn on hybrid cgroups"
[ -e /dev/vhost-vsock ] || skip_check "kernel vhost-vsock" "this machine has no /dev/vhost-vsock"

# --- ends -----------------------------------------------------------------------------------------
PID=$(main_pid board)
check "a panic of the guest ends QEMU and is restarted" panic_restarts
TAIL=40 check "it comes up again" wait_ready
check "the page answers after the restart" eventually 10 matches Hello page 8080
HOST_TIMEOUT=150 check "dstackctl vm stop" in_host dstackctl vm stop board
check "the unit ended in order" equals "inactive success" in_host_sh \
    'echo $(systemctl show -P ActiveState "$1") $(systemctl show -P Result "$1")' "$(unit_of board)"
check "no QEMU is left" equals "" in_host_sh 'pgrep -a qemu || :'
check "nothing of it is left with machined" equals "" in_host_sh 'machinectl list --no-legend | grep board || :'
check "the state is stopped" matches 'board.*stopped' in_host dstackctl vm list
HOST_TIMEOUT=600 check "systemctl start returns when the app is up" in_host systemctl start dstack-vm@board.service
check "the page answers at that moment, after a start" matches Hello page 8080
refused "a running VM is not removed without --force" "running" in_host dstackctl --no-ask-password vm remove board
check "a forced removal" vm_remove board
check "nothing of its state is left" eventually 10 equals "" in_host_sh 'find /var/lib/dstack /var/lib/private /run/dstack* -name "*board*" 2>/dev/null'
check "the list is empty" equals 0 in_host_sh 'dstackctl --json vm list | jq "if type == \"array\" then . else .vms end | length"'
check "no unit failed" equals "" in_host systemctl --failed --no-legend --plain
