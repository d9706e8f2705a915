# The ingress as an app in a CVM, with the bench's authority, name server and simulated TEE. Needs check.sh and keys.sh.
# shellcheck shell=bash

# gateway_image: the image of guest-os/ingress, pushed into the machine's registry.
gateway_image() {
    local image
    image=$(find "$OUT/ingress" -maxdepth 1 -name 'dstack-ingress-*' | head -n 1) && [ -n "$image" ] || return
    tar -C "$image" -cf - . | machine_enter sh -euc 'mkdir -p /root/ingress.oci; tar -C /root/ingress.oci -xf -
        skopeo --insecure-policy copy --dest-tls-verify=false oci:/root/ingress.oci docker://registry.test:5000/dstack-ingress:1 2>&1
        rm -r /root/ingress.oci'
}

# gateway_compose DOMAIN: the compose file of the example, with what is the bench's.
gateway_compose() {
    cat <<EOF
services:
  ingress:
    image: registry.test:5000/dstack-ingress:1
    privileged: true
    network_mode: host
    tty: true
    tmpfs: [/run, /tmp]
    volumes: ["/run/dstack.sock:/run/dstack.sock", "state:/var/lib/dstack", "relay:/run/relay"]
    configs:
      - {source: tproxy, target: /etc/dstack/tproxy.toml.d/50-app.toml}
      - {source: certbot, target: /etc/dstack/certbot.toml.d/50-app.toml}
      - {source: authority, target: /etc/dstack/authority.pem}
      - {source: root, target: /etc/dstack/trust.d/bench.pem}
      - {source: key, target: /etc/credstore/certbot-tsig, mode: 0400}
  # The simulated TEE, which has the collateral of its quotes, is the host's.
  relay:
    image: registry.test:5000/relay:1
    privileged: true
    command: ["UNIX-LISTEN:/relay/quote-sim.sock,fork,mode=666,unlink-early", "VSOCK-CONNECT:2:9998"]
    volumes: ["relay:/relay"]
volumes: {state: {}, relay: {}}
configs:
  tproxy:
    content: |
      [proxy]
      base_domain = "$1"
      listen_port = 19443
      [wg]
      endpoint = "192.0.2.1:21820"
      [collateral]
      quote_sim = "/run/relay/quote-sim.sock"
  certbot:
    content: |
      acme_url = "https://acme.test:14000/dir"
      acme_root = "/etc/dstack/authority.pem"
      issuer = "pebble.test"
      [[certificate]]
      names = ["$1", "*.$1"]
      [dns]
      provider = "rfc2136"
      [dns.rfc2136]
      server = "192.0.2.3:53"
      key_name = "bench"
  authority:
    content: |
$(in_host cat /etc/pebble/ca.pem | sed 's/^/      /')
  root:
    content: |
$(in_host_sh 'cat /etc/dstack/trust.d/*.pem /usr/lib/dstack/trust.d/*.pem 2>/dev/null || :' | sed 's/^/      /')
  key:
    content: \${TSIG}
EOF
}
