# One host machine: an overlay over the cached tree, booted by systemd-nspawn, entered by its leader.
# shellcheck shell=bash

# MACHINE_ID tells machines apart that run side by side.
RUN=$CACHE/machine${MACHINE_ID:+-$MACHINE_ID}
ROOT=$RUN/root
MACHINE=dstack-bench${MACHINE_ID:+-$MACHINE_ID}
CGROUP=$MACHINE
APT_DIR=$RUN/apt

# machine_leader: PID of the machine's init, or nothing.
machine_leader() {
    local pid
    pid=$(cat "$RUN/leader" 2>/dev/null) || return 1
    [ -n "$pid" ] && [ "$(stat -Lc %i "/proc/$pid/ns/mnt" 2>/dev/null)" = "$(cat "$RUN/mntns" 2>/dev/null)" ] &&
        echo "$pid"
}

# machine_clean: end what an earlier run left, whoever killed it.
machine_clean() {
    local pid
    if pid=$(cat "$RUN/nspawn" 2>/dev/null) && grep -qs "$ROOT" "/proc/$pid/cmdline"; then
        kill "$pid" 2>/dev/null || :
        for _ in $(seq 100); do
            [ -e "/proc/$pid" ] || break
            sleep 0.1
        done
        kill -9 "$pid" 2>/dev/null || :
    fi
    local leader
    if leader=$(machine_leader); then kill -9 "$leader" 2>/dev/null || :; fi
    while mountpoint -q "$ROOT"; do umount -R "$ROOT" 2>/dev/null || umount -Rl "$ROOT"; done
    machine_cgroup_remove
    rm -rf "$RUN"
}

machine_cgroup_remove() {
    local base
    for base in /sys/fs/cgroup/systemd /sys/fs/cgroup/unified /sys/fs/cgroup; do
        [ -d "$base/$CGROUP" ] || continue
        find "$base/$CGROUP" -depth -type d -exec rmdir {} + 2>/dev/null || :
    done
}

# machine_cgroup_enter: a cgroup of our own, so that the machine's systemd roots its tree there.
machine_cgroup_enter() {
    local base
    for base in /sys/fs/cgroup/systemd /sys/fs/cgroup/unified /sys/fs/cgroup; do
        [ -w "$base/cgroup.procs" ] && mkdir -p "$base/$CGROUP" 2>/dev/null || continue
        echo "$BASHPID" >"$base/$CGROUP/cgroup.procs" 2>/dev/null || :
    done
}

machine_mount() {
    mkdir -p "$RUN"/{upper,work,root,apt}
    mount -t overlay dstack-bench \
        -o "lowerdir=$(tree_path),upperdir=$RUN/upper,workdir=$RUN/work" "$ROOT" ||
        die "cannot mount an overlay below $CACHE. Put CACHE on ext4 or xfs."
}

# machine_spawn: start nspawn in the background; a scope of its own where the outside runs systemd.
machine_spawn() {
    local wrap=() args=()
    if [ -d /run/systemd/system ]; then
        wrap=(systemd-run --quiet --scope --collect -p Delegate=yes --slice=machine.slice)
    fi
    [ -e /dev/kvm ] && args+=(--bind=/dev/kvm)
    [ -e /dev/vhost-vsock ] && args+=(--bind=/dev/vhost-vsock)
    # Open to all as udev makes it, whatever the mode outside is: the kernel asks for CAP_NET_ADMIN anyway.
    [ -e /dev/net/tun ] && { [ -e "$RUN/tun" ] || mknod -m 666 "$RUN/tun" c 10 200; } && args+=(--bind="$RUN/tun:/dev/net/tun")
    mkdir -p "$LOGS"
    (
        exec </dev/null >"$LOGS/${RUN##*/}-console.log" 2>&1
        [ -z "${LOCK_FD:-}" ] || exec {LOCK_FD}>&-
        [ ${#wrap[@]} -gt 0 ] || machine_cgroup_enter
        exec setsid "${wrap[@]}" systemd-nspawn --quiet --directory="$ROOT" --machine="$MACHINE" --boot \
            --register=no --keep-unit --private-network --console=pipe --link-journal=no \
            --resolv-conf=off --timezone=off \
            --bind-ro="$APT_DIR:/srv/dstack/apt" --bind-ro="$TOP/examples:/srv/dstack/examples" \
            --bind-ro="$VM_DIR:/srv/dstack/tests" "${args[@]}"
    ) &
    echo $! >"$RUN/nspawn"
    disown # a machine outlives the command that started it, and its group's signals end at the trap
}

# machine_find_leader: nspawn's child that is PID 1 in a namespace of its own.
machine_find_leader() {
    local spawner=$1 pid
    for pid in $(cat "/proc/$spawner"/task/*/children 2>/dev/null); do
        if [ "$(awk '/^NSpid:/ { print $NF }' "/proc/$pid/status" 2>/dev/null)" = 1 ]; then
            echo "$pid"
            return
        fi
        machine_find_leader "$pid" && return
    done
    return 1
}

machine_build() { tree_build && tree_path; }
machine_make() { tree_make "$1"; }

machine_start() {
    need_root "the host machine"
    machine_clean
    tree_build
    machine_boot || {
        machine_clean
        exit 1
    }
}

machine_boot() (
    machine_mount
    repo_make "$APT_DIR"
    machine_up
)

# machine_up: boot what is mounted.
machine_up() {
    local spawner leader='' state
    say "booting the host machine …"
    machine_spawn
    spawner=$(cat "$RUN/nspawn")
    for _ in $(seq 300); do
        leader=$(machine_find_leader "$spawner") && [ -S "/proc/$leader/root/run/dbus/system_bus_socket" ] && break
        [ -e "/proc/$spawner" ] || die "systemd-nspawn ended at once: $(tail -n 5 "$LOGS/${RUN##*/}-console.log")"
        leader=''
        sleep 0.1
    done
    [ -n "$leader" ] || die "the host machine did not come up in 30 s; see $LOGS/${RUN##*/}-console.log"
    echo "$leader" >"$RUN/leader"
    stat -Lc %i "/proc/$leader/ns/mnt" >"$RUN/mntns"
    state=$(machine_enter timeout 90 systemctl is-system-running --wait || :)
    say "the host machine is $state"
    [ "$state" = running ] || machine_enter systemctl --no-pager --failed
}

# machine_enter COMMAND…: run in the machine's namespaces, outside its units: works without its bus.
machine_enter() {
    local leader
    leader=$(machine_leader) || die "the host machine is not running. Start it with: tests/vm/machine start"
    nsenter -t "$leader" -m -u -i -n -p -C -r -w -- env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
        HOME=/root LANG=C.UTF-8 TERM="${TERM:-dumb}" "$@"
}

machine_shell() { machine_enter systemd-run --quiet --shell; }

# machine_halt: shut it down in order, for at most three minutes: its VMs have up to one and a half each.
machine_halt() {
    local leader
    leader=$(machine_leader) || return 0
    kill -s RTMIN+4 "$leader" 2>/dev/null || :
    for _ in $(seq 1800); do
        [ -e "/proc/$leader" ] || return 0
        sleep 0.1
    done
    return 1
}

machine_stop() {
    machine_halt || :
    machine_clean
}

# machine_reboot: down in order and up again, with what is on its disk. It is for nspawn's caller to start it again.
machine_reboot() (
    local spawner
    spawner=$(cat "$RUN/nspawn") || die "the host machine is not running. Start it with: tests/vm/machine start"
    machine_halt || die "the host machine did not shut down within three minutes; see $LOGS/${RUN##*/}-console.log"
    for _ in $(seq 100); do
        [ -e "/proc/$spawner" ] || break
        sleep 0.1
    done
    machine_up
)
