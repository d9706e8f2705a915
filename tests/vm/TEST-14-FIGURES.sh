#!/bin/bash
# Needs: packages image
# Timeout: 900
# Lane: alone
# Sizes and times: printed for the record, and checked where the machine's speed does not decide them. The last test,
# since most of its thousand VMs stay.
set -eu
. "$(dirname "$0")/lib/check.sh"
. "$VM_DIR/lib/app.sh"

figure() { printf '    figure  %-44s %s\n' "$1" "$2"; }

# at_most NAME LIMIT UNIT VALUE
at_most() {
    figure "$1" "$4 $3 (target: at most $2)"
    check "$1 at most $2 $3" test "$4" -le "$2"
}

rss_mb() { in_host_sh 'awk "/^VmRSS/ { print int(\$2 / 1024) }" "/proc/$(systemctl show -P MainPID "$1")/status"' "$1"; }

property() { in_host_sh 'o=$(busctl --json=short call org.dstack.teepod1 /org/dstack/teepod1 org.dstack.teepod1.Manager GetVm s "$1" | jq -r ".data[0]")
    busctl --json=short get-property org.dstack.teepod1 "$o" org.dstack.teepod1.Vm "$2" | jq -r "$3"' "$1" "$2" "$3"; }

needs_image
at_most "guest image" 300 MB "$(in_host_sh 'du -sm --apparent-size /usr/share/dstack/images/dstack-[0-9]* | cut -f 1')"

# --- one VM without an app ------------------------------------------------------------------------
in_host_sh 'printf "#!/bin/bash\nexec sleep infinity\n" >/tmp/idle.sh'
HOST_TIMEOUT=500 must "boot a VM whose app only sleeps" in_host dstackctl deploy --runner bash --script /tmp/idle.sh --name idle
figure "boot, stage by stage (ms since the start)" "$(property idle Timeline '[.data[] | "\(.[0]) \(.[1])"] | join(", ")')"
figure "boot to READY, s" "$(in_host_sh 'systemctl show "$1" -p InactiveExitTimestampMonotonic -p ActiveEnterTimestampMonotonic |
    awk -F = "{ t[\$1] = \$2 } END { printf \"%.1f\", (t[\"ActiveEnterTimestampMonotonic\"] - t[\"InactiveExitTimestampMonotonic\"]) / 1e6 }"' "$(unit_of idle)")"
sleep 10 # let the guest come to rest: this is what is measured
SYSINFO=$(in_host_sh 'busctl --json=short --timeout=20 call "$@" CallGuest ss idle SysInfo | jq -r ".data[0]"' "${MANAGER[@]}")
at_most "guest memory in use at idle" 220 MB \
    "$(jq -r '(.used_memory // (.total_memory - (.available_memory // .free_memory))) / 1048576 | floor' <<<"$SYSINFO")"
at_most "RSS of teepod" 15 MB "$(rss_mb dstack-teepod.service)"
at_most "RSS of dstack-vm" 15 MB "$(rss_mb "$(unit_of idle)")"
check "remove it" vm_remove idle

# --- a thousand records ---------------------------------------------------------------------------
JSON='{"manifest_version":2,"name":"a","runner":"bash","bash_script":"true","kms_enabled":false}'
BYTES=$(printf '%s' "$JSON" | od -An -v -tu1 | tr -s ' \n' ' ')
HOST_TIMEOUT=200 check "create 1,000 VMs" in_host_sh 'bytes=$1; n=$2; shift 2; for i in $(seq 1000); do
    busctl call "$@" CreateVm "saya{sv}" "r$i" $n $bytes 1 start b false >/dev/null; done' "$BYTES" "${#JSON}" "${MANAGER[@]}"
# calls WORDS…: nanoseconds of 20 calls of busctl
calls() { in_host_sh 'b=$(date +%s%N); for i in $(seq 20); do busctl call "$@" >/dev/null; done; echo $(($(date +%s%N) - b))' "$@"; }
WITH=$(calls "${MANAGER[@]}" ListVms)
WITHOUT=$(calls org.dstack.teepod1 /org/dstack/teepod1 org.freedesktop.DBus.Peer Ping)
at_most "ListVms with 1,000 VMs" 20 ms "$(((WITH - WITHOUT) / 20000000))"
at_most "RSS of teepod with 1,000 VMs" 30 MB "$(rss_mb dstack-teepod.service)"
# A job and two sandboxed units each. teepod runs 256 jobs at a time: it says so, and the caller tries again.
HOST_TIMEOUT=100 check "remove 300 of them" in_host_sh 'for i in $(seq 300); do
    until busctl --timeout=100 call "$@" RemoveVm s "r$i" >/dev/null 2>/tmp/refused; do
        grep -q "wait for some to end" /tmp/refused || { cat /tmp/refused; exit 1; }; sleep 0.3; done; done' "${MANAGER[@]}"
check "the others are left" eventually 180 equals 700 in_host_sh 'dstackctl --json vm list | jq length'
