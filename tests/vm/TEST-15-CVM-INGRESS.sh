#!/bin/bash
# Needs: packages image ingress
# Timeout: 1500
# Lane: second
# The ingress and its certificates as an app in a CVM: the keys stay there, the account is quoted, and apps register at it.
set -eu
. "$(dirname "$0")/lib/check.sh"
. "$VM_DIR/lib/app.sh"
. "$VM_DIR/lib/keys.sh"
. "$VM_DIR/lib/gateway.sh"

DOMAIN=cvm.custom.test ROOT=/run/authority-root.pem
DISKS=/var/lib/private/dstack-vm
RPC=https://192.0.2.1:19070/prpc

acme_info() { in_host_sh 'curl -sS -k --max-time 10 "$1/Tproxy.AcmeInfo?json" | jq -er "$2"' "$RPC" "$1"; }
shown() { in_host_sh 'echo | openssl s_client -connect 192.0.2.1:19443 -servername "$3-80.$1" 2>/dev/null | openssl x509 -noout -"$2"' "$DOMAIN" "$1" "$APP"; }
trusted() { in_host_sh 'echo | openssl s_client -connect 192.0.2.1:19443 -servername "$3-80.$2" -verify_hostname "$3-80.$2" -CAfile "$1" -verify_return_error' "$ROOT" "$DOMAIN" "$APP"; }
# fetch NAME PATH: by its name at the ingress in the CVM.
fetch() { in_host curl -sS -f --max-time 15 --cacert "$ROOT" --resolve "$1.$DOMAIN:19443:192.0.2.1" "https://$1.$DOMAIN:19443$2"; }
gateway_is() { in_host_sh 'mkdir -p /etc/dstack/kms.toml.d; echo "gateway_app_id = \"$1\"" >/etc/dstack/kms.toml.d/70-gateway.toml; systemctl restart dstack-kms.service' "$1"; }

needs_kms
HOST_TIMEOUT=200 must "the image of the ingress" gateway_image
must "its compose file" in_host_sh 'echo "$1" >/root/ingress.yaml; printf "TSIG=%s\n" "$(cat /etc/knot/bench.secret)" >/root/ingress.env' "$(gateway_compose "$DOMAIN")"
must "VMs may have ports of the host's address" in_host_sh 'mkdir -p /etc/dstack/teepod.toml.d
    printf "[cvm.port_mapping]\naddress = \"0.0.0.0\"\n" >/etc/dstack/teepod.toml.d/70-ports.toml; systemctl restart dstack-teepod.service'
must "deploy the ingress" in_host dstackctl deploy /root/ingress.yaml --name gateway -c 2 -m 2G --key-provider kms --no-tproxy \
    --env-file /root/ingress.env --registry-insecure "$REGISTRY" --no-wait \
    -p 0.0.0.0:19443:9443 -p 0.0.0.0:19070:9070 -p 0.0.0.0:21820:51820/udp
GATEWAY=$(vm_field gateway app_id)
check "t17 the key service is told which app is the gateway" gateway_is "$GATEWAY"
HOST_TIMEOUT=500 TAIL=40 must "it is up" in_host dstackctl vm wait gateway

# --- the account ---------------------------------------------------------------------------------
check "auditors are told the account" eventually 240 matches '^https://acme.test' acme_info .account_uri
ACCOUNT=$(acme_info .account_uri)
check "CAA lets it alone issue" matches "accounturi=$ACCOUNT" in_host kdig +short @192.0.2.3 CAA "$DOMAIN"
check "the account is quoted" in_host_sh 'curl -sS -k "$1/Tproxy.AcmeInfo?json" | jq -er .account_quote >/root/account-quote.json' "$RPC"
DATA=$(printf 'acme-account:%s' "$ACCOUNT" | sha512sum | cut -d ' ' -f 1)
check "and the quote verified: of this account, by this app" matches "$GATEWAY" in_host dstackctl verify /root/account-quote.json --report-data "$DATA"
refused "not of another" 'report' in_host dstackctl verify /root/account-quote.json --report-data "${DATA//[0-4]/5}"

# --- an app registers at it ------------------------------------------------------------------------
check "eventually the ingress has a gateway's certificate" eventually 100 matches 'gateway' in_host_sh 'echo | openssl s_client -connect 192.0.2.1:19070 2>/dev/null | openssl x509 -noout -subject'
must "guests are told of it" in_host_sh 'mkdir -p /etc/dstack/teepod.toml.d
    printf "[cvm]\ntproxy_urls = [\"https://192.0.2.1:19070\"]\n" >/etc/dstack/teepod.toml.d/70-gateway.toml; systemctl restart dstack-teepod.service'
HOST_TIMEOUT=500 TAIL=40 must "deploy an app" in_host dstackctl deploy /srv/dstack/tests/apps/ingress/docker-compose.yaml --name inside -c 1 -m 1536M \
    --key-provider kms --tproxy --registry-insecure "$REGISTRY"
APP=$(vm_field inside app_id)
must "the root of the authority" in_host_sh 'curl -sS -f --cacert /etc/pebble/ca.pem https://acme.test:15000/roots/0 >"$1"; openssl x509 -in "$1" -noout -subject' "$ROOT"
check "it is reached through the ingress in the CVM" equals hello eventually 60 fetch "$APP-80" /hello
check "and by its instance" equals hello fetch "$(vm_field inside instance_id)-80" /hello

# --- the certificate, at the name of somebody -------------------------------------------------------
TAIL=40 check "clients see the authority's certificate" matches 'Pebble' eventually 60 shown issuer
check "and trust it" trusted
check "apps' names are in it" matches "DNS:\*.$DOMAIN" shown ext=subjectAltName
SERIAL=$(shown serial) KEY=$(shown pubkey)
check "the key that clients see is told" in_host_sh 'curl -sS -k "$1/Tproxy.AcmeInfo?json" | jq -r ".hist_keys[]" | grep -qxiF "$(echo "$2" | openssl pkey -pubin -outform DER | od -An -v -tx1 | tr -d " \n")"' "$RPC" "$KEY"
# no_key: the host has an encrypted disk and logs of this VM, and no private key in either.
no_key() {
    in_host_sh 'grep -aqm 1 LUKS "$1" || { echo "$1 is not encrypted"; exit 1; }
        ! grep -am 1 "PRIVATE KEY-----" "$1" || exit 1
        ! { dstackctl logs gateway ingress; journalctl -q --no-pager -o cat -u "dstack*"; } 2>&1 | grep -F "PRIVATE KEY-----"' "$DISKS/gateway/data.qcow2"
}
check "p32 its private key is nowhere on the host" no_key

# --- a restart -------------------------------------------------------------------------------------
HOST_TIMEOUT=200 must "restart the VM of the ingress" in_host_sh 'dstackctl vm stop gateway && dstackctl vm start gateway'
HOST_TIMEOUT=500 must "it is up again" in_host dstackctl vm wait gateway
check "with the certificate that it had" eventually 240 equals "$SERIAL" shown serial
check "and the account" eventually 100 equals "$ACCOUNT" acme_info .account_uri
check "the app finds it by itself" equals hello eventually 200 fetch "$APP-80" /hello

check "remove them" vm_remove gateway inside
check "the host's own settings again" in_host_sh 'rm /etc/dstack/kms.toml.d/70-gateway.toml /etc/dstack/teepod.toml.d/70-*.toml; systemctl restart dstack-kms.service dstack-teepod.service'
check "no unit failed" equals "" in_host_sh 'systemctl reset-failed "dstack-vm@*" || :; systemctl --failed --no-legend --plain'
