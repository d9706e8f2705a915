#!/bin/bash
# Needs: packages image
# Timeout: 1500
# Lane: second
# Set-up, and the certificate of the ingress: from Pebble with validation, names by knot, and an alarm for any other.
set -eu
. "$(dirname "$0")/lib/check.sh"
. "$VM_DIR/lib/app.sh"
. "$VM_DIR/lib/keys.sh"
. "$VM_DIR/lib/ingress.sh"

ANSWERS=/srv/dstack/tests/answers/acme.toml
CERTBOT=(org.dstack.certbot1 /org/dstack/certbot1 org.dstack.certbot1.Manager)
ROOT=/run/acme-root.pem

dig() { in_host kdig +short @192.0.2.3 "$@"; }
# shown FIELD: what a client sees of the certificate.
shown() { in_host_sh 'echo | openssl s_client -connect 192.0.2.1:9443 -servername "$2.apps.test" 2>/dev/null | openssl x509 -noout "-$1"' "$1" "$APP"; }
is_clean() { equals "" dig TXT _acme-challenge.apps.test; }
no_guards() { ! dig CAA apps.test | grep -F '";"'; }
account() { in_host_sh 'busctl --json=short get-property "$@" AccountUri | jq -r .data' "${CERTBOT[@]}"; }
files() { in_host_sh 'find /etc/dstack /etc/credstore.encrypted /etc/systemd/system -type f -printf "%p %m %T@ %s\n" | sort'; }

needs_kms
in_host_sh 'rm -f /etc/dstack/*.toml.d/50-bench.toml /etc/dstack/*.toml.d/60-* /etc/dstack/certs/*
    systemctl restart dstack-kms.service dstack-teepod.service dstack-tproxy.service' || :

# --- set-up ---------------------------------------------------------------------------------------
check "without settings the units say what to do" matches 'dstackctl init' in_host_sh 'busctl introspect org.dstack.certbot1 / >/dev/null; busctl introspect org.dstack.tproxy1 / >/dev/null
    systemctl status --no-pager -n 0 dstack-tproxy dstack-certbot || :'
check "dstackctl init shows what it would do" matches '20-init.toml' in_host dstackctl init --answers "$ANSWERS" --dry-run
refused "and has not done it" 'No such file' in_host ls /etc/dstack/certbot.toml.d/20-init.toml
refused "a wrong answer is named" 'base_domain' in_host_sh 'sed "s/apps.test/not..a..name/" "$1" >/root/wrong.toml; dstackctl init --answers /root/wrong.toml --yes' "$ANSWERS"
HOST_TIMEOUT=180 TAIL=40 must "dstackctl init" in_host dstackctl init --answers "$ANSWERS" --yes
check "custody and realm are said in words" matches 'derive every app|realm' echo "$REPLY"
check "the status of certbot says it" matches '1 of 1 certificates' in_host systemctl show -P StatusText dstack-certbot.service
check "and that of the ingress" matches '^Serving apps.test: [^;]*$' eventually 5 in_host systemctl show -P StatusText dstack-tproxy.service
check "a wrong setting" in_host_sh 'printf "[wg]\nclient_ip_range = \"foo\"\n" >/etc/dstack/tproxy.toml.d/90-wrong.toml; systemctl restart dstack-tproxy.service'
check "is in the status" matches 'Misconfigured: .*client_ip_range' in_host systemctl show -P StatusText dstack-tproxy.service
check "costs no socket" equals active in_host_sh 'systemctl is-active dstack-tproxy.socket dstack-tproxy-rpc.socket dstack-tproxy-control.socket | sort -u'
check "and is mended by a restart" matches '^Serving apps.test' in_host_sh 'rm /etc/dstack/tproxy.toml.d/90-wrong.toml; systemctl restart dstack-tproxy.service
    systemctl show -P StatusText dstack-tproxy.service'
BEFORE=$(files)
HOST_TIMEOUT=120 check "the same again" matches '[Nn]othing to change' in_host dstackctl init --answers "$ANSWERS" --yes
check "changes nothing" unchanged "$BEFORE" files
check "the token is encrypted, and root's" in_host_sh '[ "$(stat -c "%U %a" /etc/credstore.encrypted/certbot-tsig)" = "root 600" ]; ! grep -q YmVuY2gt /etc/credstore.encrypted/certbot-tsig'

# --- an app, behind the certificate ----------------------------------------------------------------
must "an app" in_host_sh 'dstackctl deploy "$1" --name cert -c 1 -m 1536M --key-provider kms --registry-insecure "$2" --no-wait' /srv/dstack/tests/apps/ingress/docker-compose.yaml "$REGISTRY"
HOST_TIMEOUT=400 TAIL=40 must "is up" in_host dstackctl vm wait cert
APP=$(vm_field cert app_id)
must "the root of the authority" in_host_sh 'curl -sS -f --cacert /etc/pebble/ca.pem https://acme.test:15000/roots/0 >"$1"; openssl x509 -in "$1" -noout -subject' "$ROOT"
check "clients see its certificate" matches 'Pebble' eventually 100 shown issuer
check "for every app" matches 'DNS:\*.apps.test' shown 'ext=subjectAltName'
check "and trust it" in_host_sh 'echo | openssl s_client -connect 192.0.2.1:9443 -servername "$2.apps.test" -verify_hostname "$2.apps.test" -CAfile "$1" -verify_return_error' "$ROOT" "$APP"
ACCOUNT=$(account)
check "CAA lets this account alone issue" matches "issuewild \"[^;]+; ?validationmethods=dns-01; ?accounturi=$ACCOUNT\"|issuewild.*accounturi=$ACCOUNT" dig CAA apps.test
check "no guard is left" no_guards
check "nor a challenge" is_clean
check "dstackctl cert list" matches 'apps.test' in_host dstackctl cert list
refused "p32 nobody reads its key" 'denied|not allowed|only' in_host_as alice busctl call "${CERTBOT[@]}" GetCertificate s apps.test
check "tproxy tells the account and the keys to whoever asks" matches "$ACCOUNT" in_host_sh 'curl -sk https://127.0.0.1:9070/prpc/Tproxy.AcmeInfo?json'
check "doctor is content" matches 'ok +ingress' in_host_sh 'dstackctl doctor || :'

# --- renewal, under load --------------------------------------------------------------------------
must "and is reached by its name" eventually 100 in_host curl -sS -f --max-time 15 --cacert "$ROOT" "https://$APP-80.apps.test:9443/hello"
CERTS_ROOT=$ROOT
# keys_told: public keys in AcmeInfo. There may be older ones, of tests before this.
keys_told() { in_host_sh 'curl -sk https://127.0.0.1:9070/prpc/Tproxy.AcmeInfo?json | jq -r ".hist_keys // .historical_keys | .[]" | sort -u'; }
keys_since() { comm -13 <(echo "$1") <(keys_told) | wc -l; }
TOLD=$(keys_told)
must "requests by four clients" load_start "https://$APP.apps.test:9443/hello" "$CERTS_ROOT"
SERIAL=$(shown serial) KEY=$(shown pubkey)
HOST_TIMEOUT=180 check "dstackctl cert renew" in_host dstackctl cert renew --force
check "clients see another certificate" eventually 20 in_host_sh '[ "$(echo | openssl s_client -connect 192.0.2.1:9443 -servername "$2.apps.test" 2>/dev/null | openssl x509 -noout -serial)" != "$1" ]' "$SERIAL" "$APP"
check "with another key" test "$(shown pubkey)" != "$KEY"
check "and no request was lost" lost_at_most 0
check "the new key is told to auditors" equals 1 keys_since "$TOLD"
check "beside those of before" equals "$TOLD" comm -12 <(echo "$TOLD") <(keys_told)

# --- kills, and a name server that is away --------------------------------------------------------
for pause in 0.1 0.4 0.8 1.6; do
    in_host_sh 'dstackctl --no-wait cert renew --force; sleep "$1"; systemctl kill --signal=KILL dstack-certbot.service; systemctl reset-failed dstack-certbot.service' "$pause" >/dev/null 2>&1 || :
done
HOST_TIMEOUT=180 check "killed four times, it renews still" in_host dstackctl cert renew --force
check "with the same account" equals "$ACCOUNT" account
check "no guard is left behind" no_guards
check "nor a challenge, either" is_clean
check "the live certificate is whole" in_host_sh 'cd /var/lib/dstack/certbot/live; [ "$(openssl x509 -in cert.pem -noout -pubkey)" = "$(openssl pkey -in key.pem -pubout)" ]'
in_host systemctl stop bench-zones.service
HOST_TIMEOUT=240 refused "without its name server a renewal fails in words" 'apps.test|192.0.2.3|DNS' in_host dstackctl cert renew --force
check "and clients see what they saw" matches 'Pebble' shown issuer
check "the name server is back" in_host systemctl start bench-zones.service
HOST_TIMEOUT=180 check "and so are renewals" in_host dstackctl cert renew --force

# --- rehearsal ------------------------------------------------------------------------------------
check "rehearse at the same authority" in_host_sh 'printf "[rehearsal]\nacme_url = \"https://acme.test:14000/dir\"\nacme_root = \"/etc/pebble/ca.pem\"\n" >/etc/dstack/certbot.toml.d/60-rehearsal.toml
    systemctl restart dstack-certbot.service'
HOST_TIMEOUT=180 check "dstackctl cert rehearse" in_host dstackctl cert rehearse
check "is green in the status" in_host dstackctl cert status
SERIAL=$(shown serial)
in_host systemctl stop bench-zones.service
HOST_TIMEOUT=240 refused "a rehearsal without DNS fails" '.' in_host systemctl start dstack-certbot-rehearsal.service
check "is an alert in the journal" eventually 20 matches 'MESSAGE_ID' in_host_sh 'journalctl -o json -u "dstack-certbot-alert@*" -n 5 | jq -r "select(.MESSAGE_ID) | \"MESSAGE_ID \" + .MESSAGE"'
refused "and red in the status" 'rehears' in_host dstackctl cert status
check "the live one is untouched" equals "$SERIAL" shown serial
in_host systemctl start bench-zones.service
in_host systemctl reset-failed 'dstack-certbot-rehearsal.service'

# --- an alarm for any other -----------------------------------------------------------------------
# crt.sh's answers, from certificates in /run/crtsh, by a web server in the world outside.
check "crt.sh has the live certificate" in_host_sh 'mkdir -p /run/crtsh; cp /var/lib/dstack/certbot/live/cert.pem /run/crtsh/1001.pem
    systemd-run --quiet --collect --unit=crtsh -p NetworkNamespacePath=/run/netns/world busybox httpd -f -p 192.0.2.2:8081 -h /srv/dstack/tests/apps/crtsh
    printf "domains = [\"apps.test\"]\n[crtsh]\nurl = \"http://192.0.2.2:8081\"\n[certbot]\nenabled = true\n[[tproxy]]\nuri = \"https://127.0.0.1:9070\"\n" \
        >/etc/dstack/ct-monitor.toml.d/60-bench.toml; systemctl restart dstack-ct-monitor.service'
HOST_TIMEOUT=90 check "whose key is known" in_host dstackctl ct check
check "no alert" equals '[]' in_host_sh 'dstackctl --json ct alerts | jq -c .'
check "somebody gets a certificate for the domain" in_host_sh 'openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -subj /CN=evil \
    -addext "subjectAltName=DNS:*.apps.test" -keyout /dev/null -out /run/crtsh/1002.pem 2>&1'
HOST_TIMEOUT=90 refused "the next check says so" 'unknown|alert' in_host dstackctl ct check
check "in the journal, with a message id" matches 'MESSAGE_ID' in_host_sh 'journalctl -o json -u dstack-ct-monitor.service | jq -r "select(.MESSAGE_ID and .PRIORITY <= \"3\") | \"MESSAGE_ID \" + .MESSAGE"'
HOST_TIMEOUT=90 check "once" in_host dstackctl ct check
check "killed, it remembers" in_host_sh 'systemctl kill --signal=KILL dstack-ct-monitor.service; systemctl start dstack-ct-monitor.service; [ "$(dstackctl --json ct alerts | jq length)" = 1 ]'
HOST_TIMEOUT=90 refused "the original's command line finds it too" '.' in_host_sh 'dstack-ct-monitor -t https://127.0.0.1:9070/prpc -d apps.test --once --crtsh http://192.0.2.2:8081 2>&1'
check "remove the app" vm_remove cert
check "no unit failed" equals "" in_host_sh 'systemctl stop crtsh; systemctl reset-failed "dstack-vm@*" "dstack-ct-monitor-check*" || :; systemctl --failed --no-legend --plain'
