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

online() { in_host_sh 'dstackctl --json proxy list | jq "[.[] | select(.online)] | length"'; }

# fetch [OPTION…] URL: by its name, as a client somewhere would; an error unless the status is 2xx.
fetch() { in_host curl -sS -f --max-time 15 --cacert "$CERTS/cert.pem" "$@"; }

# certificate NAME PORT: subject of the certificate that a client sees.
certificate() { in_host_sh 'echo | openssl s_client -connect "192.0.2.1:$2" -servername "$1" 2>/dev/null | openssl x509 -noout -subject' "$@"; }

# load_start URL [ROOT]: four clients ask for it until load_stop.
load_start() {
    in_host_sh 'rm -f /run/load /run/load.errors
        systemd-run --quiet --collect --unit=load /srv/dstack/tests/apps/ingress/load /run/load "$1" 4 --cacert "$2"' "$1" "${2:-$CERTS/cert.pem}" &&
        eventually 20 load_runs
}

load_runs() { in_host_sh 'grep -q "200 0$" /run/load'; }

# load_stop: how many requests there were and how many were lost, as "N requests, M lost".
load_stop() {
    in_host_sh 'systemctl kill --signal=STOP load; sort -u /run/load.errors | head -n 5
        awk "{ n++ } !/ 200 0\$/ { lost++ } END { print n \" requests, \" lost + 0 \" lost\" }" /run/load; systemctl kill --signal=KILL load'
}

# load_has N: so many requests have ended.
load_has() { in_host_sh '[ "$(wc -l </run/load)" -ge "$1" ]' "$1"; }

# lost_at_most N: load_stop, and more than a handful of requests.
lost_at_most() {
    local said
    eventually 20 load_has 20 >/dev/null
    said=$(load_stop) || { echo "$said" && return 1; }
    echo "$said"
    awk -v most="$1" '/ requests, / { seen = 1; exit !($1 >= 20 && $3 <= most) } END { if (!seen) exit 1 }' <<<"$said"
}

# download_start: a slow transfer over one connection, which lasts longer than what is done to the ingress meanwhile.
download_start() {
    in_host_sh 'rm -f /run/big /run/big.ended
        systemd-run --quiet --collect --unit=big sh -c "curl -sS -f --limit-rate 1M --cacert $2/cert.pem -o /run/big $1; echo \$? >/run/big.ended"' "$1" "$CERTS" &&
        eventually 15 in_host test -s /run/big
}

download_whole() { equals "0 33554432" in_host_sh 'echo "$(cat /run/big.ended) $(stat -c %s /run/big)"'; }

flow_pid() { in_host_sh 'for unit in $(systemctl list-units --plain --no-legend --state=active "dstack-tproxy-flow@*" | cut -d " " -f 1); do
    systemctl show -P MainPID "$unit"; done | tail -n 1'; }

# wireguard_image: an image whose program is the test of the WireGuard library, pushed into the machine's registry.
wireguard_image() {
    local program work
    program=$(cd "$TOP" && cargo test --quiet --locked -p dstack-wireguard --test interfaces --no-run --message-format=json |
        jq -r 'select(.executable and .target.name == "interfaces").executable') && [ -x "$program" ] || return
    work=$(mktemp -d)
    images_base "$(tree_path)" "$work/base"
    image_root "$(tree_path)" wireguard "$work/wireguard.root"
    install -D "$program" "$work/wireguard.root/bin/interfaces"
    # Built here, so it wants the libraries of here.
    ldd "$program" | grep -o '/[^ ]*' | while read -r library; do install -D "$library" "$work/wireguard.root/own$library"; done
    image_layout "$work" wireguard
    tar -C "$work" -cf "$work/image.tar" wireguard.oci && machine_copy "$work/image.tar" /root/image.tar
    rm -rf "$work"
    in_host_sh 'cd /root; tar -xf image.tar
        skopeo --insecure-policy copy --dest-tls-verify=false oci:wireguard.oci docker://registry.test:5000/wireguard:1 2>&1; rm -r image.tar wireguard.oci'
}
