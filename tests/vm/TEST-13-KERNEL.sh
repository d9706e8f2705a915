#!/bin/bash
# Machine: qemu
# Needs: packages
# Installed: dstack-tproxy dstack-kms dstack-testroot dstackctl
# Timeout: 1800
# Lane: second
# The ingress on a kernel with WireGuard, and what units may do where the kernel enforces it. A network namespace stands for
# a guest: dstack-network, the key service and the ingress are the real ones, the guest agent and its TEE are stand-ins.
# IDLE=N connections are held open, and HALF=N half open (`make bench-idle`: 50,000 and 10,000).
set -eu
. "$(dirname "$0")/lib/check.sh"
: "${IDLE:=5000}" "${HALF:=2000}"
BASE=apps.test CERTS=/etc/dstack/certs INSTANCE=$(printf 'a%.0s' {1..40})

# figure WHAT VALUE
figure() { printf '    figure  %-44s %s\n' "$1" "$2"; }

# built NAME CARGO-ARGUMENT…: a program of the workspace, built here, into the machine.
built() {
    local name=$1 program
    shift
    program=$(cd "$TOP" && cargo "$@" --quiet --locked --message-format=json |
        jq -r --arg name "$name" 'select(.executable and .target.name == $name).executable') && [ -x "$program" ] || return
    strip -o "$OUT/$name" "$program" &&
        "$VM_DIR/machine" enter sh -c 'cat >"/root/$1" && chmod 755 "/root/$1"' sh "$name" <"$OUT/$name"
}

example() { built "$1" build -p dstack-tproxy --example "$1"; }

# taken_over: the data plane as installed, in the test of what it leaves to the kernel.
taken_over() {
    local said
    said=$(in_host env DSTACK_TPROXY_FLOW=/usr/libexec/dstack/dstack-tproxy-flow /root/ktls --nocapture --test-threads=2) ||
        { printf '%s\n' "$said" && return 1; }
    printf '%s\n' "$said"
    grep -q 'test result: ok\. [1-9]' <<<"$said" && ! grep -q 'takes over no TLS' <<<"$said"
}

# in_guest COMMAND…: in the namespace that stands for a guest.
in_guest() { in_host ip netns exec guest "$@"; }

# register: what dstack-network.service does in a guest, once.
register() {
    in_host systemd-run --quiet --wait --pipe -p NetworkNamespacePath=/run/netns/guest -p RuntimeDirectory=dstack-network \
        -p RuntimeDirectoryPreserve=yes /opt/guest/usr/libexec/dstack/dstack-network
}

# fetch LABEL [OPTION…]: /hello of the app whose name begins with LABEL.
fetch() {
    local name=$1.$BASE
    shift
    in_host curl -sS -f --max-time 15 --cacert "$CERTS/cert.pem" --resolve "$name:9443:192.0.2.1" "$@" "https://$name:9443/hello"
}

link() { in_host_sh 'ip -j -d link show dstack-wg0 | jq -r ".[0] | \"\(.linkinfo.info_kind) \(.ifindex)\""'; }
peers() { in_host wg show dstack-wg0 allowed-ips; }
lease() { in_host_sh 'dstackctl --json proxy list | jq -c "[.[] | [.id, .address, .public_key]]"'; }
online() { in_host_sh 'dstackctl --json proxy list | jq "[.[] | select(.online)] | length"'; }
handshakes() { in_guest wg show dstack-wg0 latest-handshakes; }
cgroup_of() { in_host systemctl show -P ControlGroup "$1"; }
main_pid() { in_host systemctl show -P MainPID "$1"; }
metric() { in_host_sh 'curl -sSk --max-time 10 https://127.0.0.1:9070/metrics | sed -n "s/^dstack_tproxy_$1 //p"' "$1"; }
rss_kb() { in_host awk '/^VmRSS/ { print $2 }' "/proc/$1/status"; }

# in_cgroup UNIT COMMAND…: as root with everything but the unit's cgroup like a process outside of it: what is refused, the
# kernel refuses because of the unit.
in_cgroup() {
    local group
    group=$(cgroup_of "$1")
    shift
    # shellcheck disable=SC2016
    in_host sh -euc 'echo $$ >"/sys/fs/cgroup$1/cgroup.procs"; shift; exec "$@"' sh "$group" "$@"
}

must "dstack-tproxy is installed" in_host systemctl is-active dstack-tproxy.service
must "the stand-in for a guest agent" example stand_in_agent
must "a program that holds connections" example idle_connections

# --- set up as dstack-tproxy(8) says -----------------------------------------------------------------
must "a key service that names a gateway" in_host_sh 'mkdir -p /etc/dstack/kms.toml.d /etc/dstack/tproxy.toml.d
    echo "gateway_app_id = \"00112233445566778899aabbccddeeff00112233\"" >/etc/dstack/kms.toml.d/60-gateway.toml
    systemctl restart dstack-kms.service; dstackctl kms bootstrap kms.test'
# Opening many connections under emulation takes longer than an idle connection lives, and may stall for seconds.
must "settings and a certificate" in_host_sh 'printf "[proxy]\nbase_domain = \"$1\"\nconnections_per_app = 100000\n[proxy.timeouts]\nidle = \"1h\"\nconnect = \"1m\"\nhandshake = \"1m\"\n[wg]\nendpoint = \"192.0.2.1:51820\"\n" \
        >/etc/dstack/tproxy.toml.d/50-bench.toml
    cd "$2"; openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -subj "/CN=$1" \
        -addext "subjectAltName=DNS:*.$1" -keyout key.pem -out cert.pem 2>&1; chgrp dstack-tproxy key.pem; chmod 640 key.pem' "$BASE" "$CERTS"
must "a namespace in a guest's place, and its app" in_host_sh 'ip netns add guest
    ip link add uplink type veth peer name eth0 netns guest
    ip addr add 192.0.2.1/24 dev uplink; ip link set uplink up
    ip -n guest link set lo up; ip -n guest addr add 192.0.2.10/24 dev eth0; ip -n guest link set eth0 up
    mkdir -p /srv/www; echo hello >/srv/www/hello
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -subj /CN=own -keyout /srv/key.pem -out /srv/cert.pem 2>&1
    run() { systemd-run --quiet --collect -p NetworkNamespacePath=/run/netns/guest -p WorkingDirectory=/srv/www "$@"; }
    run --unit=app busybox httpd -f -p 80
    run --unit=app-tls openssl s_server -quiet -accept 443 -WWW -cert /srv/cert.pem -key /srv/key.pem'
must "systemctl restart dstack-tproxy" in_host systemctl restart dstack-tproxy.service

# --- the tunnel is the kernel's -------------------------------------------------------------------------
check "the interface is the kernel's" matches '^wireguard [0-9]+$' link
check "its address" matches ' 10\.0\.0\.1/16 ' in_host ip -br address show dstack-wg0
check "its route" matches '^10\.0\.0\.0/16 .*src 10\.0\.0\.1' in_host ip route show dev dstack-wg0
check "t19 nothing that comes out of it is forwarded" matches 'iif dstack-wg0 prohibit' in_host ip rule
check "wg(8) shows it" matches 'listening port: 51820' in_host wg show dstack-wg0
refused "no daemon of user space runs" '^$' in_host pgrep wireguard-go
check "nor failed when wg(8) asked" equals "" in_host_sh 'systemctl --failed --no-legend --plain'

# --- an instance registers, and is reached through it ---------------------------------------------------
must "the guest's dstack-network" in_host_sh 'mkdir -p /opt/guest /run/dstack
    dpkg-deb --fsys-tarfile /srv/dstack/apt/dstack-guest_*.deb | tar -C /opt/guest -xf - ./usr/libexec/dstack/dstack-network
    modprobe vsock_loopback # its way to the simulated TEE
    pin=$(dstackctl --json kms status | jq -er .local.ca_public_key)
    jq -n --arg pin "$pin" "{version: 1, tproxy_urls: [\"https://192.0.2.1:9070\"], gateway_app_id: \"00112233445566778899aabbccddeeff00112233\",
        kms_public_key: \$pin, platform: \"simulated\", allowed_ports: null, proxy_protocol_ports: []}" >/run/dstack/network.json
    systemd-run --quiet --unit=agent -p Type=notify /root/stand_in_agent /run/dstack.sock /var/lib/dstack/testroot/testroot.json \
        127.0.0.1:9043 "$pin" compose "$1"' "$INSTANCE"
must "it registers over RA-TLS" register
APP=$(in_host_sh 'dstackctl --json proxy list | jq -er ".[0].app"')
check "one peer, with one address" matches "^[A-Za-z0-9+/]{43}=	10\.0\.0\.2/32$" peers
check "the two shake hands" eventually 20 matches '	[1-9][0-9]+$' handshakes
check "it is online" eventually 20 equals 1 online
check "TLS that ends in the ingress" equals hello fetch "$APP"
check "at the instance's port" equals hello fetch "$INSTANCE-80"
check "TLS that ends in the app" equals hello fetch "${INSTANCE}s" -k
refused "which is the app's" 'self-signed' fetch "${INSTANCE}s"
check "the bytes went through the tunnel" in_host_sh 'wg show dstack-wg0 transfer | awk "{ exit !(\$2 > 2000 && \$3 > 2000) }"'

# --- the kernel takes TLS over ------------------------------------------------------------------------------
must "the data plane's test of kTLS" built ktls test -p dstack-flow --test ktls --no-run
check "kTLS is there" in_host test -d /sys/module/tls
HOST_TIMEOUT=600 TAIL=40 check "the data plane leaves TLS to this kernel" taken_over
figure "what was passed over" "$(sed -n 's/.*skipped: //p' <<<"$REPLY" | sort -u | paste -s -d ';')"

# --- what a unit may not do, the kernel refuses -----------------------------------------------------------
FLOW=$(in_host_sh 'systemctl list-units --plain --no-legend --state=active "dstack-tproxy-flow@*" | cut -d " " -f 1 | grep .')
check "the data plane may have 1,048,576 descriptors" matches '^Max open files +1048576 +1048576' in_host cat "/proc/$(main_pid "$FLOW")/limits"
check "a disk can be read" in_host dd if=/dev/vda of=/dev/null count=1
for unit in dstack-tproxy.service "$FLOW" dstack-kms.service; do
    check "$unit: devices that are harmless" in_cgroup "$unit" dd if=/dev/urandom of=/dev/null count=1
    refused "$unit: and no other (DevicePolicy)" 'not permitted' in_cgroup "$unit" dd if=/dev/vda of=/dev/null count=1
    check "$unit: no swap (MemorySwapMax)" equals 0 in_host_sh 'cat "/sys/fs/cgroup$1/memory.swap.max"' "$(cgroup_of "$unit")"
done
check "the app answers on its own address" equals hello in_host curl -sS --max-time 5 http://192.0.2.10/hello
in_host systemctl start dstack-quote-sim.service
refused "dstack-quote-sim.service: nobody beyond this machine (IPAddressDeny)" 'timed out' \
    in_cgroup dstack-quote-sim.service curl -sS --max-time 3 http://192.0.2.10/hello
check "dstack-quote-sim.service: loopback" in_cgroup dstack-quote-sim.service curl -sSk --max-time 10 -o /dev/null https://127.0.0.1:9043/

# --- idle connections ---------------------------------------------------------------------------------------
NAMES=()
for port in {8001..8004}; do NAMES+=("$INSTANCE-${port}s.$BASE"); done
must "an app that holds connections" in_host systemd-run --quiet --collect --unit=app-idle -p Type=notify -p LimitNOFILE=1048576 \
    -p NetworkNamespacePath=/run/netns/guest /root/idle_connections serve 0.0.0.0:800{1..4}
PID=$(main_pid "$FLOW") BEFORE=$(rss_kb "$PID") QUICK=$(fetch "$APP" -o /dev/null -w '%{time_total}')
# or_counters COMMAND…: when it fails, what the ingress has counted.
or_counters() { "$@" || { in_host_sh 'curl -sSk https://127.0.0.1:9070/metrics | grep -E "^dstack_tproxy_[a-z_]+ [1-9]"' && return 1; }; }
HOST_TIMEOUT=1500 TAIL=40 must "$IDLE connections are opened" or_counters in_host systemd-run --quiet --unit=idle -p Type=notify -p TimeoutStartSec=1480 \
    -p LimitNOFILE=1048576 /root/idle_connections open 127.0.0.1:9443 "$IDLE" "${NAMES[@]}"
check "the counters say $IDLE" eventually 30 equals "$IDLE" metric open
check "it was one process that took them all" equals "$PID" main_pid "$FLOW"
AFTER=$(rss_kb "$PID")
LATE=$(fetch "$APP" -o /dev/null -w '%{time_total}')
figure "how they were opened" "$(in_host systemctl show -P StatusText idle.service)"
figure "resident memory of the data plane, KiB" "$BEFORE before, $AFTER with them: $(((AFTER - BEFORE) * 1024 / IDLE)) bytes each"
figure "answer to a new client, s" "$QUICK before, $LATE with them"
check "at most 2 KiB of it for a connection" awk "BEGIN { each = ($AFTER - $BEFORE) * 1024 / $IDLE; exit !($BEFORE > 0 && each <= 2048) }"
check "a new client is answered within a second of before" awk "BEGIN { exit !($LATE <= $QUICK + 1) }"
check "they are all still there" in_host systemctl is-active idle.service
check "and end when the clients do" in_host systemctl stop idle.service
check "which is counted" eventually 60 equals 0 metric open

# --- half-open connections ------------------------------------------------------------------------------------
STALLED=$(metric hello_timeout_total)
# All of them before the first one's deadline.
must "$HALF clients say one byte" in_host systemd-run --quiet --unit=half -p Type=notify -p TimeoutStartSec=50 \
    -p LimitNOFILE=1048576 /root/idle_connections stall 127.0.0.1:9443 "$HALF"
figure "how they came" "$(in_host systemctl show -P StatusText half.service)"
check "they are all there" eventually 20 equals "$HALF" metric half_open
LATE=$(fetch "$APP" -o /dev/null -w '%{time_total}')
figure "answer to a new client, s" "$QUICK before, $LATE with them"
check "a new client is answered within a second of before" awk "BEGIN { exit !($LATE <= $QUICK + 1) }"
check "each is ended at its deadline" eventually 150 equals 0 metric half_open
check "which is counted" equals "$HALF" eval 'echo $(($(metric hello_timeout_total) - STALLED))'
check "it was the same process" equals "$PID" main_pid "$FLOW"

# --- the control plane dies, is stopped, and an instance goes -------------------------------------------------
LINK=$(link) PEERS=$(peers) LEASE=$(lease)
check "SIGKILL of the control plane" in_host systemctl kill --signal=KILL dstack-tproxy.service
check "it is back" eventually 20 equals 1 online
check "the link is the same" equals "$LINK" link
check "its peers are" equals "$PEERS" peers
check "and the lease" equals "$LEASE" lease
check "and the way through it" equals hello fetch "$APP"
check "systemctl stop dstack-tproxy" in_host systemctl stop dstack-tproxy.service
check "leaves link and peers" equals "$LINK $PEERS" in_host_sh 'echo "$(ip -j -d link show dstack-wg0 | jq -r ".[0] | \"\(.linkinfo.info_kind) \(.ifindex)\"") $(wg show dstack-wg0 allowed-ips)"'
check "and the data plane" equals hello fetch "$APP"
check "systemctl start dstack-tproxy" in_host systemctl start dstack-tproxy.service
check "an instance is removed" in_host dstackctl proxy remove "$INSTANCE"
check "its peer is gone" equals "" peers
refused "and its app" 'unrecognized|alert' fetch "$APP"
check "systemctl stop dstack-tproxy.socket ends all" in_host systemctl stop dstack-tproxy.socket dstack-tproxy.service
refused "nobody answers" 'refused|connect' fetch "$APP"
check "no unit failed" equals "" in_host_sh 'systemctl --failed --no-legend --plain'
