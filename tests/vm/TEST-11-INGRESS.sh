#!/bin/bash
# Needs: packages image
# Timeout: 2400
# Lane: second
# The ingress: instances register, names lead to them, and neither a dying instance nor a changing tproxy loses requests.
set -eu
. "$(dirname "$0")/lib/check.sh"
. "$VM_DIR/lib/app.sh"
. "$VM_DIR/lib/keys.sh"
. "$VM_DIR/lib/images.sh"
. "$VM_DIR/lib/tree.sh"
. "$VM_DIR/lib/ingress.sh"

APP_FILE=/srv/dstack/tests/apps/ingress/docker-compose.yaml
start() { HOST_TIMEOUT=500 in_host dstackctl deploy "$1" -c 1 -m 1536M --key-provider kms --registry-insecure "$REGISTRY" "${@:2}"; }
wait_ready() { HOST_TIMEOUT=400 in_host dstackctl vm wait "$1"; }

needs_kms
needs_ingress
check "doctor finds the ingress" matches 'ok +ingress +Serving apps.test' in_host_sh 'dstackctl doctor || :'
check "the socket of the tunnel was all that it took" matches 'dstack-wg0' in_host ip -br address show dstack-wg0
check "t19 nothing that comes out of the tunnel is forwarded" matches 'iif dstack-wg0 prohibit' in_host ip rule

# --- two instances of an app, one of another ------------------------------------------------------
start "$APP_FILE" --name other --tproxy-port 80 >"$OUT/other.deployed" 2>&1 & # a VM takes one processor
OTHER_DEPLOY=$!
must "deploy an app" start "$APP_FILE" --name one
check "deploy prints its address" matches "https://$(vm_field one app_id)-80.apps.test:9443/ +through the ingress" echo "$REPLY"
# An instance more of the same app runs the same document, to the byte.
in_host_sh 'dstackctl --json deploy "$1" --name one --key-provider kms --registry-insecure "$2" --dry-run | jq -rj .app_compose >/root/one.json' "$APP_FILE" "$REGISTRY"
must "a second instance of it" in_host_sh 'dstackctl --no-wait deploy /root/one.json --name two -c 1 -m 1536M'
OTHER_RC=0
wait "$OTHER_DEPLOY" || OTHER_RC=$?
must "and another app, of which clients reach one port" test "$OTHER_RC" = 0
check "deploy prints the address of that port alone" equals 1 grep -c "through the ingress" "$OUT/other.deployed"
TAIL=40 must "the second instance is up" wait_ready two
APP=$(vm_field one app_id) ONE=$(vm_field one instance_id) TWO=$(vm_field two instance_id) OTHER=$(vm_field other app_id)
check "all three are registered and online" eventually 60 equals 3 online
if in_host systemctl is-active dstack-wireguard@dstack-wg0.service >/dev/null; then
    check "and the tunnel's program has no error to tell" equals 0 in_host_sh 'journalctl -q --no-pager -o cat -u dstack-wireguard@dstack-wg0.service >/root/wg
        grep -c ERROR /root/wg || :'
else
    skip_check "the tunnel's program has no error to tell" "the kernel has WireGuard"
fi
check "p28 each has an address of its own" equals 3 in_host_sh 'dstackctl --json proxy list | jq "[.[].address] | unique | length"'

# --- every form of a name --------------------------------------------------------------------------
# That a container runs does not say that its program listens already.
must "the first instance's program answers" eventually 30 fetch "https://$ONE-80.apps.test:9443/who"
HOST_ONE=$REPLY
must "and the second's" eventually 30 fetch "https://$TWO-80.apps.test:9443/who"
HOST_TWO=$REPLY
check "an instance's id leads to it" test "$HOST_ONE" != "$HOST_TWO"
for name in "$APP" "$APP-80" "$ONE"; do check "https://$name" equals hello fetch "https://$name.apps.test:9443/hello"; done
check "the other app is another" test "$(fetch "https://$OTHER.apps.test:9443/who")" != "$HOST_ONE"
refused "its other ports are nobody's" 'unrecognized name|alert' fetch "https://$OTHER-8080.apps.test:9443/hello"
check "HTTP/2 to the app" equals '200 2' fetch -o /dev/null -w '%{http_code} %{http_version}' "https://$ONE-8080g.apps.test:9443/hello"
for name in "${ONE}s" "$ONE-s" "$ONE-443s" "$ONE-8443s"; do
    check "https://$name ends in the app" equals hello fetch -k "https://$name.apps.test:9443/hello"
    check "with the app's certificate" matches "CN ?= ?app-$HOST_ONE" certificate "$name.apps.test" 9443
done
check "the second port never ends TLS" matches "CN ?= ?app-$HOST_ONE" certificate "$ONE-443.apps.test" 9008
check "capital letters" equals hello fetch "https://${APP^^}.apps.test:9443/hello"
refused "a name of nobody" 'unrecognized name|alert' fetch "https://$(printf '0%.0s' {1..40}).apps.test:9443/"
refused "a port that nobody has" 502 fetch "https://$APP-81.apps.test:9443/"
check "a custom domain, by its TXT record" in_host_sh 'printf "server 192.0.2.3\nzone custom.test\nadd _dstack-app-address.www.custom.test 5 TXT \"$1:8443\"\nsend\n" |
    knsupdate -y hmac-sha256:bench:YmVuY2gtYmVuY2gtYmVuY2gtYmVuY2gtYmVuY2gtMDE=; kdig +short @192.0.2.3 TXT _dstack-app-address.www.custom.test' "$ONE"
check "leads to the app's own TLS" matches "CN ?= ?app-$HOST_ONE" eventually 15 certificate www.custom.test 9443
check "p29 a TXT record with an address leads nowhere" in_host_sh 'printf "server 192.0.2.3\nzone custom.test\nadd _dstack-app-address.evil.custom.test 5 TXT \"192.0.2.1:22\"\nsend\n" |
    knsupdate -y hmac-sha256:bench:YmVuY2gtYmVuY2gtYmVuY2gtYmVuY2gtYmVuY2gtMDE='
refused "p29 nor does its name" 'alert|unrecognized' fetch -k --resolve evil.custom.test:9443:192.0.2.1 "https://evil.custom.test:9443/"
check "the agent's page says the app's address" matches "<a href=\"https://$APP.apps.test:9443/\">" fetch "https://$APP-8090.apps.test:9443/"
check "the plain HTTP port" in_host_sh 'mkdir -p /etc/systemd/system/dstack-tproxy-flow@.service.d
    systemctl stop dstack-tproxy; systemctl start dstack-tproxy-http.socket; systemctl start dstack-tproxy
    printf "[Service]\nSockets=dstack-tproxy-http.socket\n" >/etc/systemd/system/dstack-tproxy-flow@.service.d/http.conf
    systemctl daemon-reload; systemctl reload dstack-tproxy'
check "routes by Host" equals hello eventually 15 fetch "http://$APP-80.apps.test:9090/hello"
check "the tutorial's curl prints the container's log" fetch "http://$APP.apps.test:9090/logs/web?text=true&bare=true&tail=5"
check "in the metrics they are counted" eventually 20 in_host_sh \
    'curl -sk https://127.0.0.1:9070/metrics | grep -E "^dstack_tproxy_(terminated|passed_through|http|unknown_name|connect_failed)_total [1-9]" | wc -l | grep -qx 5'

# --- nothing is lost when it changes ----------------------------------------------------------------
URL=https://$APP.apps.test:9443/hello
must "a slow transfer of 32 MiB" download_start "https://$ONE.apps.test:9443/big"
must "requests by four clients" load_start "$URL"
BEFORE=$(flow_pid)
check "systemctl reload dstack-tproxy" in_host systemctl reload dstack-tproxy.service
check "another process carries the bytes" eventually 10 in_host_sh '[ "$1" != "$2" ]' "$BEFORE" "$(flow_pid)"
check "systemctl restart dstack-tproxy" in_host systemctl restart dstack-tproxy.service
check "and no socket of the data plane blocks" equals "" in_host_sh 'for fd in /proc/"$1"/fd/*; do case $(readlink "$fd") in socket:*)
    flags=$(sed -n "s/^flags:[[:space:]]*//p" "${fd%/fd/*}/fdinfo/${fd##*/}" 2>/dev/null) || continue # the client is gone
    [ "${fd##*/}" -lt 3 ] || [ $((flags & 04000)) != 0 ] || echo "$fd: $flags" ;; esac; done' "$(flow_pid)"
check "SIGKILL of the control plane" in_host systemctl kill --signal=KILL dstack-tproxy.service
check "it is back by itself" eventually 20 equals 3 online
HOST_TIMEOUT=240 check "the package is installed anew" matches 'Unpacking dstack-tproxy' in_host_sh 'export DEBIAN_FRONTEND=noninteractive
    apt-get update -q && apt-get install -q -y --reinstall dstack-tproxy'
check "which does not wait for what still drains" in_host test ! -e /run/big.ended
check "the plain HTTP port is still there" equals hello eventually 10 fetch "http://$APP-80.apps.test:9090/hello"
check "a certificate is replaced" in_host_sh 'cd "$1"
    openssl req -x509 -key key.pem -days 30 -subj /CN=renewed.test -addext subjectAltName=DNS:*.apps.test,DNS:apps.test -out new.pem
    cat new.pem >>cert.pem; cat new.pem cert.pem >both.pem; mv both.pem cert.pem; rm new.pem; systemctl reload dstack-tproxy.service' "$CERTS"
check "and is what clients see" matches renewed.test eventually 15 certificate "$APP.apps.test" 9443
check "none of this lost a request" lost_at_most 0
check "nor the slow transfer" eventually 60 download_whole

must "requests again" load_start "$URL"
check "an instance is killed" in_host dstackctl vm kill two
sleep 5
check "its app keeps answering" equals hello fetch "$URL"
check "only what was under way with it was lost" lost_at_most 4
must "and again" load_start "$URL"
sleep 2
check "with the instance gone, nothing is lost" lost_at_most 0
must "once more" load_start "$URL"
KILLED=$(in_host_sh 'kill -9 "$1"; date +%s%3N' "$(flow_pid)")
check "the data plane is killed, and answers" equals hello eventually 10 fetch "$URL"
BACK=$(($(in_host date +%s%3N) - KILLED))
check "within a second ($BACK ms, of which a new curl is a part)" test "$BACK" -le 1500
check "live connections were lost, and no more" lost_at_most 8

# --- away ------------------------------------------------------------------------------------------
SOCKETS=(dstack-tproxy.socket dstack-tproxy-passthrough.socket dstack-tproxy-http.socket dstack-tproxy-rpc.socket dstack-tproxy-control.socket)
check "tproxy goes away, and its key with it" in_host_sh 'systemctl stop "$@" dstack-tproxy.service "dstack-tproxy-flow@*.service" "dstack-wireguard@*"
    rm /var/lib/dstack/tproxy/wireguard.key' "${SOCKETS[@]}"
GONE=$(date +%s)
refused "nobody answers" 'refused|connect' fetch "$URL"

# Meanwhile, the kernel's WireGuard.
# The host machine has the kernel of whatever it runs on, so this runs where the kernel is ours: in a VM.
HOST_TIMEOUT=200 check "make an image of the WireGuard library's test" wireguard_image
HOST_TIMEOUT=400 check "run it in a VM" in_host dstackctl deploy /srv/dstack/tests/apps/wireguard/docker-compose.yaml --name kernel \
    --key-provider none --registry-insecure "$REGISTRY" --allow-tags
check "it ends" eventually 60 matches 'test result' in_host dstackctl logs kernel test
check "two interfaces of the kernel shake hands" matches 'two_interfaces_shake_hands \.\.\. ok' in_host dstackctl logs kernel test
refused "and nothing was skipped" '^$' in_host_sh 'dstackctl logs kernel test | grep skipped'
check "the module was loaded for it" matches 'wireguard' in_host dstackctl logs kernel test

left=$((GONE + ${AWAY:-300} - $(date +%s)))
[ "$left" -le 0 ] || sleep "$left" # longer than a handshake is good for
check "it comes back with another key" in_host systemctl start "${SOCKETS[@]}" dstack-tproxy.service
check "the guests find it by themselves" eventually 150 equals 2 online
check "and are reached" equals hello eventually 20 fetch "$URL"
check "at the address they had" equals 3 in_host_sh 'dstackctl --json proxy list | jq "[.[].address] | unique | length"'

HOST_TIMEOUT=200 check "remove the apps" vm_remove one two other kernel
check "no unit failed" equals "" in_host_sh 'systemctl reset-failed "dstack-vm@*" || :; systemctl --failed --no-legend --plain'
