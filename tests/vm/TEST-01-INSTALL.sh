#!/bin/bash
# Needs: packages
# `apt install dstack-host` gives working, quiet services, and leaves nothing behind when purged.
set -eu
. "$(dirname "$0")/lib/check.sh"

BUS=(busctl --timeout=20)

listening() { in_host ss -Hltn "sport = :$1" | awk '{ print $4 }'; }

# files_not_of_root: what an ordinary user could change, or a daemon's own program.
writable_files() {
    in_host_sh 'for p in $(dpkg-query -W -f "\${db:Status-Abbrev} \${Package}\n" "dstack*" | sed -n "s/^ii *//p"); do dpkg -L "$p"; done | sort -u |
        while read -r f; do [ -f "$f" ] && [ ! -L "$f" ] && find "$f" -perm /022 -o -not -user root; done'
}

must "apt install dstack-host" apt_install dstack-host
check "no failed unit" equals "" in_host systemctl --failed --no-legend --plain
check "the machine is still running, not degraded" equals running in_host systemctl is-system-running
check "dpkg finds every package configured" equals "" in_host dpkg --audit
check "dpkg finds every file intact" equals "" in_host_sh 'dpkg-query -W -f "\${db:Status-Abbrev} \${Package}\n" "dstack*" | sed -n "s/^ii *//p" | xargs dpkg --verify'
check "every unit verifies" in_host_sh \
    'cd /usr/lib/systemd/system; for u in dstack*; do case $u in *@.*) u=${u%%@*}@x.${u##*.};; *.d) continue;; esac
     echo "$u"; done | xargs systemd-analyze verify --man=no --recursive-errors=no'
check "no file of the packages can be changed by an ordinary user" equals "" writable_files

check "teepod's socket is enabled" equals enabled in_host systemctl is-enabled dstack-teepod.socket
check "teepod's socket listens" equals active in_host systemctl is-active dstack-teepod.socket
check "the web port is on loopback only" equals 127.0.0.1:9080 listening 9080
check "the bus starts teepod" in_host "${BUS[@]}" call org.dstack.teepod1 /org/dstack/teepod1 org.freedesktop.DBus.Peer Ping
check "teepod is up and not root" matches '^dstack-teepod$' \
    in_host_sh 'ps -o user:32= -p "$(systemctl show -P MainPID dstack-teepod)"'
check "teepod says what it does" matches . in_host systemctl show -P StatusText dstack-teepod
check "its state is private" equals "dstack-teepod 700" in_host_sh \
    'stat -L -c "%U %a" "$(systemctl show -P StateDirectory dstack-teepod | sed s,^,/var/lib/,)"'
check "its actions are registered with polkit" matches 'org\.dstack\.teepod1\.' in_host sh -c 'pkaction || grep -rhs "action id" /usr/share/polkit-1/actions'
check "the group dstack-admin exists" in_host getent group dstack-admin
check "a request without a token gets 401" equals 401 \
    in_host curl -s -o /dev/null -w '%{http_code}' -X POST http://127.0.0.1:9080/prpc/Teepod.Status
check "the key service listens on its port" matches ':9043' listening 9043
check "before its bootstrap the key service says what to do" matches 'dstackctl kms bootstrap' in_host_sh \
    'busctl get-property org.dstack.kms1 /org/dstack/kms1 org.dstack.kms1.Manager Bootstrapped; systemctl show -P StatusText dstack-kms.service'
check "before its configuration the ingress says what to do" matches 'proxy.base_domain' in_host_sh \
    'systemctl start dstack-tproxy.service; systemctl show -P StatusText dstack-tproxy.service'
check "before its configuration certbot says what to do" matches '/etc/dstack/certbot.toml' in_host_sh \
    'systemctl start dstack-certbot.service; systemctl show -P StatusText dstack-certbot.service'
check "and its timers ask for nothing" equals "active inactive" in_host_sh \
    'systemctl start dstack-certbot-renew.service; echo $(systemctl is-active dstack-certbot.timer dstack-certbot-renew.service)'

check "before its configuration the certificate monitor says what to do" matches 'ct-monitor.toml' in_host_sh \
    'systemctl start dstack-ct-monitor.service; systemctl show -P StatusText dstack-ct-monitor.service'
check "its timer runs, and its check does nothing then" equals success in_host_sh \
    'systemctl is-active -q dstack-ct-monitor.timer && systemctl start dstack-ct-monitor-check.service && systemctl show -P Result dstack-ct-monitor-check.service'

for page in dstackctl.1 dstack-teepod.8 dstack-kms.8 dstack-tproxy.8 dstack-certbot.8 dstack-ct-monitor.8 org.dstack.teepod1.5 org.dstack.kms1.5 org.dstack.certbot1.5 org.dstack.ctmonitor1.5; do
    check "man page $page" in_host_sh 'ls /usr/share/man/man*/"$1"*' "$page"
done
check "shell completion" in_host test -e /usr/share/bash-completion/completions/dstackctl
check "no error in the journal" equals "" in_host journalctl --no-pager -q -b -p err -u 'dstack*' -o cat
check "dstackctl doctor" in_host dstackctl doctor

HOST_TIMEOUT=240 check "apt purge" in_host_sh 'DEBIAN_FRONTEND=noninteractive apt-get purge -q -y "dstack*"'
check "nothing listens after the purge" equals "" listening 9080
check "no unit is left" equals "" in_host_sh 'systemctl list-units --all --no-legend --plain "dstack*"; ls /etc/systemd/system | grep dstack || :'
check "no configuration and no state is left" equals "" \
    in_host_sh 'ls -d /etc/dstack /var/lib/dstack* /var/lib/private/dstack* /run/dstack* /run/systemd/system.control/dstack* /var/lib/systemd/timers/stamp-dstack* 2>/dev/null || :'
check "the machine is not degraded after it" equals running in_host systemctl is-system-running
must "it installs again" apt_install dstack-host
check "and runs" in_host "${BUS[@]}" call org.dstack.teepod1 /org/dstack/teepod1 org.freedesktop.DBus.Peer Ping
