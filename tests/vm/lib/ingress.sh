# An ingress for apps.test, with a certificate of the bench. Needs check.sh, app.sh and keys.sh.
# shellcheck shell=bash

GATEWAY=00112233445566778899aabbccddeeff00112233
CERTS=/etc/dstack/certs

# needs_ingress: a gateway that the key service names, and settings for tproxy and teepod.
needs_ingress() {
    must "settings of the ingress" in_host_sh '
        put() { mkdir -p "${1%/*}"; printf "$2" >"$1"; }
        put /etc/dstack/kms.toml.d/60-gateway.toml "gateway_app_id = \"$1\"\n"
        put /etc/dstack/tproxy.toml.d/50-bench.toml "[proxy]\nbase_domain = \"apps.test\"\n[wg]\nendpoint = \"192.0.2.1:51820\"\n"
        put /etc/dstack/teepod.toml.d/60-ingress.toml "[cvm]\ntproxy_urls = [\"https://192.0.2.1:9070\"]\n"
        systemctl restart dstack-kms.service dstack-teepod.service' "$GATEWAY"
    must "a certificate for *.apps.test" in_host_sh 'cd "$1"
        openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -subj /CN=apps.test \
            -addext subjectAltName=DNS:*.apps.test,DNS:apps.test -keyout key.pem -out cert.pem 2>&1
        chgrp dstack-tproxy key.pem; chmod 640 key.pem' "$CERTS"
    must "systemctl restart dstack-tproxy" in_host systemctl restart dstack-tproxy.service
}

online() { in_host_sh 'dstackctl --json proxy list | jq "[.[] | select(.state == \"online\")] | length"'; }

# fetch [OPTION…] URL: by its name, as a client somewhere would; an error unless the status is 2xx.
fetch() { in_host curl -sS -f --max-time 15 --cacert "$CERTS/cert.pem" "$@"; }

# certificate NAME PORT: subject of the certificate that a client sees.
certificate() { in_host_sh 'echo | openssl s_client -connect "192.0.2.1:$2" -servername "$1" 2>/dev/null | openssl x509 -noout -subject' "$@"; }
