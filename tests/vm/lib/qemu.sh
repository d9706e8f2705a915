# The other host machine: the same Debian under its own kernel in QEMU, for what nspawn cannot show: WireGuard and TLS in
# the kernel, limits of cgroups, units' filters. It has the functions of lib/nspawn.sh, and what runs inside runs as there.
#
# QEMU is the nspawn machine's own (that of the system may be too old for the kernel under TCG). It has a network namespace
# of its own, in which its user network leads port 22 of loopback to the machine's sshd and nowhere else.
# shellcheck shell=bash

RUN=$CACHE/machine-qemu
. "$VM_DIR/lib/qemu-disk.sh"
: "${QEMU_ACCEL:=tcg,thread=multi}" "${QEMU_MEMORY:=2G}"

# machine_leader: PID of QEMU, or nothing.
machine_leader() {
    local pid
    pid=$(cat "$RUN/pid" 2>/dev/null) || return 1
    grep -qsa "dstack-bench-qemu" "/proc/$pid/cmdline" && echo "$pid"
}

machine_clean() {
    local pid
    if pid=$(machine_leader); then
        kill -9 "$pid" 2>/dev/null || :
        while [ -e "/proc/$pid" ]; do sleep 0.1; done
    fi
    rm -rf "$RUN"
}

# machine_start PACKAGE…: boot afresh, with these packages of the repository installed.
machine_start() {
    need_root "the host machine"
    machine_clean
    machine_build >/dev/null
    mkdir -p "$RUN" "$LOGS"
    chmod 700 "$RUN"
    repo_make "$RUN/apt"
    disk_install "$RUN" "$@"
    mke2fs -q -t ext4 -O ^has_journal -L bench -d "$RUN/apt" "$RUN/apt.img" 600M >/dev/null
    ssh-keygen -q -t ed25519 -N '' -C bench -f "$RUN/key"
    say "booting the QEMU host machine …"
    machine_spawn
    (machine_up) || {
        machine_stop
        exit 1
    }
}

# machine_spawn: in a mount namespace where the nspawn machine's tree has /dev, $RUN as /mnt and the kernel in /srv.
machine_spawn() {
    local key
    key=$(base64 -w 0 "$RUN/key.pub")
    # shellcheck disable=SC2016 # of the inner shell
    (
        exec </dev/null >"$LOGS/machine-qemu.log" 2>&1
        [ -z "${LOCK_FD:-}" ] || exec {LOCK_FD}>&-
        exec setsid unshare --mount --net sh -euc 'ip link set lo up
            mount --rbind /dev "$1/dev"; mount --bind "$2" "$1/mnt"; mount --bind "$3" "$1/srv"
            tree=$1; shift 3
            exec chroot "$tree" qemu-system-x86_64 "$@"' sh "$(tree_path)" "$RUN" "$(disk_path)" \
            -name dstack-bench-qemu -machine q35 -accel "$QEMU_ACCEL" -cpu max -smp 2 -m "$QEMU_MEMORY" \
            -nodefaults -no-user-config -display none -serial file:/mnt/console.log \
            -drive file=/mnt/root.img,if=virtio,format=raw,cache=unsafe \
            -drive file=/mnt/apt.img,if=virtio,format=raw,readonly=on \
            -netdev user,id=n,restrict=on,hostfwd=tcp:127.0.0.1:22-10.0.2.15:22 -device virtio-net-pci,netdev=n,romfile= \
            -device virtio-rng-pci -kernel /srv/vmlinuz -initrd /srv/initrd \
            -append "console=ttyS0 root=/dev/vda rw net.ifnames=0 panic=-1 systemd.set_credential_binary=ssh.authorized_keys.root:$key"
    ) &
    echo $! >"$RUN/pid"
    disown
}

# machine_ssh OPTION…: from QEMU's network namespace.
machine_ssh() {
    local pid
    pid=$(machine_leader) || die "the QEMU host machine is not running. Start it with: tests/vm/machine --qemu start"
    nsenter -t "$pid" -n -- ssh -F none -i "$RUN/key" -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null \
        -o LogLevel=ERROR -o BatchMode=yes -o ControlPath="$RUN/ssh" "$@"
}

# machine_up: until it answers; one connection stays, which those of commands go through.
machine_up() {
    local state began pid
    began=$(date +%s) pid=$(cat "$RUN/pid")
    until machine_leader >/dev/null &&
        machine_ssh -M -N -f -o ConnectTimeout=5 root@127.0.0.1 </dev/null >"$RUN/ssh.log" 2>&1; do
        [ -e "/proc/$pid" ] || die "QEMU ended: $(tail -n 5 "$LOGS/machine-qemu.log")"
        [ $(($(date +%s) - began)) -lt 180 ] || die "the QEMU host machine did not come up in 180 s; see $LOGS/machine-qemu-console.log"
        sleep 0.3
    done
    state=$(machine_enter timeout 90 systemctl is-system-running --wait || :)
    say "the QEMU host machine is $state"
    [ "$state" = running ] || machine_enter systemctl --no-pager --failed
}

# machine_enter COMMAND…: run outside its units, by ssh.
machine_enter() { machine_ssh root@127.0.0.1 -- "LANG=C.UTF-8 $(printf '%q ' "$@")"; }

machine_shell() { machine_ssh -t root@127.0.0.1; }

# machine_halt: shut it down in order, for at most a minute.
machine_halt() {
    local pid
    pid=$(machine_leader) || return 0
    machine_enter systemctl --no-block poweroff || return
    for _ in $(seq 600); do
        [ -e "/proc/$pid" ] || return 0
        sleep 0.1
    done
    return 1
}

# machine_stop: its disk is thrown away, so it need not shut down in order.
machine_stop() {
    [ ! -e "$RUN/console.log" ] || cp "$RUN/console.log" "$LOGS/machine-qemu-console.log"
    machine_clean
}

# machine_reboot: down in order and up again, with what is on its disk.
machine_reboot() {
    machine_enter systemctl --no-block reboot
    while machine_ssh -O check root@127.0.0.1 2>/dev/null; do sleep 0.3; done # the connection ends with the machine
    machine_up
}
