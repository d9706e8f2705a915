# A host machine: $MACHINE_KIND is nspawn, or qemu for what only a kernel of its own can show. Both have the same functions.
# shellcheck shell=bash

: "${MACHINE_KIND:=nspawn}"
export MACHINE_KIND
. "$VM_DIR/lib/images.sh"
. "$VM_DIR/lib/tree.sh"
. "$VM_DIR/lib/repo.sh"
. "$VM_DIR/lib/$MACHINE_KIND.sh"

# kind_of FILE: the machine that a test wants, by its line "# Machine: qemu".
kind_of() { sed -n 's/^# Machine: \([a-z]*\)$/\1/p; $a nspawn' "$1" | head -n 1; }

# machine_run [--uid=USER] COMMAND…: run as a transient unit of the machine, as a login would not be:
# no session, so that polkit sees an ordinary, inactive subject. Streams, and keeps the exit status.
machine_run() {
    local opts=()
    while [ "${1:-}" != "${1#--}" ]; do
        opts+=("$1")
        shift
    done
    machine_enter systemd-run --quiet --pipe --wait --collect --service-type=exec --expand-environment=no \
        -E LANG=C.UTF-8 -E HOME=/root -E SYSTEMD_COLORS=0 -E SYSTEMD_PAGER=cat \
        "${opts[@]}" -- "$@"
}
