# A host with a key service and the simulated TEE, and what apps say about their keys. Needs check.sh and app.sh.
# shellcheck shell=bash

KMS=192.0.2.1:9043
KMS_BUS=(org.dstack.kms1 /org/dstack/kms1 org.dstack.kms1.Manager)
KEYS_APP=/srv/dstack/tests/apps/keys/docker-compose.yaml

# needs_kms: packages, a bootstrapped and trusted key service, and a teepod that tells guests where it is.
needs_kms() {
    needs_image
    in_host_sh 'dpkg-query -W -f "\${db:Status-Status}" dstack-testroot 2>/dev/null | grep -qx installed' ||
        must "apt install dstack-testroot" apt_install dstack-testroot
    if ! equals true kms_property Bootstrapped >/dev/null 2>&1; then
        # Its realm is that of the roots that were there when it started.
        in_host systemctl try-restart dstack-kms.service
        must "dstackctl kms bootstrap" in_host dstackctl kms bootstrap kms.test
        must "the key service is up with its keys" eventually 30 equals true kms_property Bootstrapped
    fi
    in_host_sh 'mkdir -p /etc/dstack/teepod.toml.d; f=/etc/dstack/teepod.toml.d/50-kms.toml
        printf "[cvm]\nkms_urls = [\"https://%s\"]\n" "$1" >$f.new; cmp -s $f.new $f || { mv $f.new $f; systemctl restart dstack-teepod.service; }' "$KMS"
    must "dstackctl kms trust" in_host dstackctl kms trust "https://$KMS" --yes --default
}

kms_property() { in_host_sh 'busctl --json=short get-property org.dstack.kms1 /org/dstack/kms1 org.dstack.kms1.Manager "$1" | jq -r .data' "$1"; }

# ask_app PORT PROGRAM[/PATH[?QUERY]] [BODY]: what a program of the app answers; the sockets' last line is the status.
ask_app() { in_host curl -sS --max-time 30 ${3:+--data-binary "$3"} "http://127.0.0.1:$1/cgi-bin/$2"; }

# answered PORT PROGRAM/PATH [BODY]: the JSON of an answer with status 200.
answered() {
    local reply
    reply=$(ask_app "$@") || { echo "$reply" && return 1; }
    [ "$(tail -n 1 <<<"$reply")" = 200 ] || { echo "$reply" && return 1; }
    sed '$d' <<<"$reply"
}

# field EXPRESSION COMMAND…: jq over what a command prints.
field() {
    local expression=$1
    shift
    "$@" | jq -er "$expression"
}

vm_field() { in_host_sh 'dstackctl --json vm show "$1" | jq -er "$2"' "$1" ".$2"; }

# quote_to FILE PORT [REPORT_DATA]: the answer of Tappd.TdxQuote, from inside a container, as a file of the host.
quote_to() {
    answered "$2" "tappd/prpc/Tappd.TdxQuote?json" "{\"report_data\": \"${3:-0x1234deadbeef}\"}" >"$OUT/quote.json" || {
        cat "$OUT/quote.json" && return 1
    }
    machine_copy "$OUT/quote.json" "$1"
}

# machine_copy FILE TO: a file into the machine.
machine_copy() { machine_enter sh -c 'cat >"$1"' sh "$2" <"$1"; }
