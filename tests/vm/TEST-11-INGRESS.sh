#!/bin/bash
# Needs: packages image
# Timeout: 1500
# The ingress: instances register, names lead to them, and neither a dying instance nor a changing tproxy loses requests.
set -eu
. "$(dirname "$0")/lib/check.sh"
. "$VM_DIR/lib/app.sh"
. "$VM_DIR/lib/keys.sh"
. "$VM_DIR/lib/ingress.sh"

APP_FILE=/srv/dstack/tests/apps/ingress/docker-compose.yaml
start() { HOST_TIMEOUT=500 in_host dstackctl deploy "$APP_FILE" --key-provider kms --registry-insecure "$REGISTRY" -c 1 -m 1536M "$@"; }

needs_kms
needs_ingress
check "doctor finds the ingress" matches 'ok +ingress +Serving apps.test' in_host_sh 'dstackctl doctor || :'
check "the socket of the tunnel was all that it took" matches 'dstack-wg0' in_host ip -br address show dstack-wg0
check "t20 nothing that comes out of the tunnel is forwarded" matches 'iif dstack-wg0 prohibit' in_host ip rule

# --- two instances of an app, one of another ------------------------------------------------------
must "deploy an app" start --name one
check "deploy prints its address" matches "https://$(vm_field one app_id).apps.test" echo "$REPLY"
must "a second instance of it" start --name two --app-id "$(vm_field one app_id)"
must "and another app" start --name other -e COLOUR=blue
APP=$(vm_field one app_id) ONE=$(vm_field one instance_id) TWO=$(vm_field two instance_id) OTHER=$(vm_field other app_id)
check "all three are registered and online" eventually 60 equals 3 online
check "t17 each has an address of its own" equals 3 in_host_sh 'dstackctl --json proxy list | jq "[.[].address] | unique | length"'

# --- every form of a name --------------------------------------------------------------------------
HOST_ONE=$(fetch "https://$ONE-80.apps.test:9443/who") HOST_TWO=$(fetch "https://$TWO-80.apps.test:9443/who")
check "an instance's id leads to it" test "$HOST_ONE" != "$HOST_TWO"
for name in "$APP" "$APP-80" "$ONE"; do check "https://$name" equals hello fetch "https://$name.apps.test:9443/hello"; done
check "the other app is another" test "$(fetch "https://$OTHER.apps.test:9443/who")" != "$HOST_ONE"
check "HTTP/2 to the app" equals 'hello 2' fetch -w ' %{http_version}' "https://$ONE-8080g.apps.test:9443/hello"
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
check "p28 a TXT record with an address leads nowhere" in_host_sh 'printf "server 192.0.2.3\nzone custom.test\nadd _dstack-app-address.evil.custom.test 5 TXT \"192.0.2.1:22\"\nsend\n" |
    knsupdate -y hmac-sha256:bench:YmVuY2gtYmVuY2gtYmVuY2gtYmVuY2gtYmVuY2gtMDE='
refused "p28 nor does its name" 'alert|unrecognized' fetch -k "https://evil.custom.test:9443/"
check "the plain HTTP port" in_host_sh 'mkdir -p /etc/systemd/system/dstack-tproxy-flow@.service.d
    printf "[Service]\nSockets=dstack-tproxy-http.socket\n" >/etc/systemd/system/dstack-tproxy-flow@.service.d/http.conf
    systemctl daemon-reload; systemctl start dstack-tproxy-http.socket; systemctl reload dstack-tproxy'
check "routes by Host" equals hello eventually 15 fetch "http://$APP-80.apps.test:9090/hello"
check "the tutorial's curl prints the container's log" matches '.' fetch "http://$APP-8090.apps.test:9090/logs/$(in_host_sh 'dstackctl --json vm show one | jq -r ".containers[0] // \"web\""')?text&bare&tail=5"
