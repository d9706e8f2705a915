# Paths, words and locks that every script of the bench shares. Sourced, never run.
# shellcheck shell=bash

TOP=$(cd "$(dirname "${BASH_SOURCE[0]}")/../../.." && pwd)
VM_DIR=$TOP/tests/vm
if [ "$(id -u)" = 0 ]; then
    : "${CACHE:=/var/cache/dstack}"
else
    : "${CACHE:=${XDG_CACHE_HOME:-$HOME/.cache}/dstack}"
fi
: "${OUT:=$CACHE/out}" "${V:=0}"
LOGS=$OUT/logs
DEBS=$OUT/deb
IMAGE_DIR=$OUT/image
STARTED=${STARTED:-$(date +%s)}
export TOP CACHE OUT V STARTED
export LC_ALL=C.UTF-8

command -v cargo >/dev/null || [ ! -x "$HOME/.cargo/bin/cargo" ] || export PATH=$PATH:$HOME/.cargo/bin
# sudo drops the caller's PATH: find that user's Rust, and keep what root downloads out of their home.
if ! command -v cargo >/dev/null && [ -n "${SUDO_USER:-}" ]; then
    user_home=$(getent passwd "$SUDO_USER" | cut -d : -f 6)
    if [ -x "$user_home/.cargo/bin/cargo" ]; then
        export PATH=$PATH:$user_home/.cargo/bin RUSTUP_HOME=${RUSTUP_HOME:-$user_home/.rustup}
        export CARGO_HOME=${CARGO_HOME:-$CACHE/cargo}
    fi
    unset user_home
fi

# say WORDS…: one progress line with the seconds since the start.
say() { printf '[%4ds] %s\n' "$(($(date +%s) - STARTED))" "$*"; }

# die WORDS…: end with a message; the last sentence tells the remedy.
die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

# need_root WHAT: the bench mounts, makes namespaces and boots systemd.
need_root() { [ "$(id -u)" = 0 ] || die "$1 needs root. Run it with sudo."; }

# stage LOG TITLE COMMAND…: run a long command into logs/LOG.log, with a sign of life every 30 s;
# V=1 shows its output (COMMAND runs without set -e). On failure the end of the log is shown.
stage() {
    local log=$LOGS/$1.log title=$2 began rc=0 beat
    shift 2
    mkdir -p "$LOGS"
    began=$(date +%s)
    say "$title …"
    if [ "$V" = 1 ]; then
        "$@" </dev/null 2>&1 | tee "$log"
        rc=${PIPESTATUS[0]}
    else
        (
            trap 'kill "$nap" 2>/dev/null; exit 0' TERM
            while :; do
                sleep 30 >/dev/null 2>&1 &
                nap=$!
                wait "$nap"
                say "  … $(tail -c 300 "$log" | tr '\r' '\n' | tail -n 1 | cut -c 1-100)"
            done
        ) &
        beat=$!
        "$@" </dev/null >"$log" 2>&1 || rc=$?
        kill "$beat" 2>/dev/null || :
        wait "$beat" 2>/dev/null || :
    fi
    if [ "$rc" != 0 ]; then
        say "$title: failed with status $rc; the end of $log:"
        tail -n 40 "$log" | sed 's/^/    /'
        return "$rc"
    fi
    say "$title: done in $(($(date +%s) - began)) s"
}

# lock NAME WHAT [wait]: hold an exclusive lock (as $LOCK_FD) until this process ends; when another
# process holds it, fail, or wait.
lock() {
    local holder
    mkdir -p "$CACHE/lock"
    exec {LOCK_FD}>>"$CACHE/lock/$1"
    if ! flock -n "$LOCK_FD"; then
        holder=$(head -n 1 "$CACHE/lock/$1")
        [ "${3:-}" = wait ] || die "$2 is in use by process $holder. Wait for it, or end it."
        say "waiting for process $holder, which holds $2 …"
        flock "$LOCK_FD"
    fi
    echo $$ >"$CACHE/lock/$1"
}

# hash_of FILE…: one SHA-256 over the names and bytes of files.
hash_of() { sha256sum -- "$@" | sha256sum | cut -c 1-16; }
