# What a test is written with. A test is a file TEST-NN-NAME.sh that sources this and calls
#   check "what" COMMAND…          one check; the test goes on when it fails
#   must "what" COMMAND…           the same, but the test ends there: the rest would make no sense
#   refused "what" REGEX COMMAND…  the command must fail, and its output match
#   skip_check "what" "reason"     one check that cannot run here
#   skip "reason"                  the whole test (exit status 77)
# and runs commands in the host machine with in_host, in_host_as USER, in_host_sh 'script'.
# shellcheck shell=bash

. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
MACHINE_KIND=$(sed -n 's/^# Machine: //p' "$0")
. "$VM_DIR/lib/host.sh"

TEST=$(basename "${0%.sh}")
: "${RESULTS:=/dev/null}" "${HOST_TIMEOUT:=60}"
FAILED=0
trap 'status=$?; test_end' EXIT

test_end() {
    [ "$status" = 0 ] || [ "$FAILED" = 1 ] || [ "$status" = 77 ] ||
        record fail "the script itself" "ended with status $status"
    [ "$FAILED" = 0 ] || status=1
    exit "$status"
}

# record RESULT WHAT [NOTE]: one line for the person, one for the runner.
record() {
    case $1 in
    pass) printf '    ok    %s%s\n' "$2" "${3:+ ($3)}" ;;
    skip) printf '    skip  %s: %s\n' "$2" "$3" ;;
    fail)
        FAILED=1
        printf '    FAIL  %s%s\n' "$2" "${3:+: $3}"
        ;;
    esac
    printf '%s\t%s\t%s\t%s\n' "$1" "$TEST" "$(flat "$2")" "$(flat "${3:-}")" >>"$RESULTS"
}

flat() { tr -s '\n\t ' ' ' <<<"$1" | cut -c 1-200; }

# attempt WHAT COMMAND…: run and record; the output is shown when it fails, and kept in $REPLY.
attempt() {
    local what=$1 began took rc=0
    shift
    began=$(date +%s%N)
    REPLY=$("$@" 2>&1) || rc=$?
    took=$((($(date +%s%N) - began) / 1000000))
    if [ "$rc" = 0 ]; then
        record pass "$what" "$took ms"
    else
        record fail "$what" "status $rc of: $(flat "$*")"
        printf '%s\n' "$REPLY" | tail -n "${TAIL:-15}" | cut -c 1-400 | sed 's/^/          | /'
        [ "$took" -lt "$((HOST_TIMEOUT * 1000))" ] || waiting | cut -c 1-160 | sed 's/^/          > /' || :
    fi
    return "$rc"
}

# waiting: who of the machine waits for what in the kernel, once a command has taken all its time: all that are in the
# middle of input and output, and those that much else depends on.
waiting() {
    timeout 20 "$VM_DIR/machine" enter ps -eo pid,stat,etimes,wchan:30,args </dev/null 2>&1 |
        awk 'NR == 1 || $2 ~ /^D/ || $2 !~ /^R/ && /systemd|systemctl|dbus|polkit|dpkg|apt|postinst|prerm|postrm/'
}

check() { attempt "$@" || :; }

must() { attempt "$@" || exit 1; }

refused() { check "$1" must_fail "${@:2}"; }

must_fail() {
    local pattern=$1 rc=0 output
    shift
    output=$("$@" 2>&1) || rc=$?
    printf '%s\n' "$output"
    [ "$rc" != 0 ] || { echo "it was expected to fail" && return 1; }
    grep -Eqi -- "$pattern" <<<"$output" || { echo "status $rc, but no match for: $pattern" && return 1; }
}

skip_check() { record skip "$1" "$2"; }

skip() {
    record skip "$TEST" "$1"
    exit 77
}

# in_host COMMAND…: as root in the host machine, at most HOST_TIMEOUT seconds.
in_host() { in_host_as root "$@"; }

# in_host_as USER COMMAND…: as an ordinary user, with no session.
in_host_as() {
    local user=$1
    shift
    timeout --foreground -k 5 "$((HOST_TIMEOUT + 5))" "$VM_DIR/machine" run --uid="$user" \
        --property=RuntimeMaxSec="$HOST_TIMEOUT" "$@" </dev/null
}

# in_host_sh SCRIPT [ARG…]: a shell script as root, -eu.
in_host_sh() {
    local script=$1
    shift
    in_host sh -euc "$script" sh "$@"
}

# eventually SECONDS COMMAND…: until it succeeds; the last output when it does not.
eventually() {
    local end=$(($(date +%s) + $1)) output
    shift
    until output=$("$@" 2>&1); do
        if [ "$(date +%s)" -ge "$end" ]; then
            printf '%s\n' "$output" "not within the time: $*"
            return 1
        fi
        sleep 0.5
    done
    printf '%s\n' "$output"
}

# equals WANTED COMMAND…: the command's output is exactly this.
equals() {
    local wanted=$1 got
    shift
    got=$("$@") || { echo "$got" && return 1; }
    [ "$got" = "$wanted" ] || { printf 'wanted: %s\ngot:    %s\n' "$wanted" "$got" && return 1; }
}

# unchanged WANTED COMMAND…: the same as before; shows the difference.
unchanged() {
    local wanted=$1
    shift
    diff <(printf '%s\n' "$wanted") <("$@")
}

# matches REGEX COMMAND…: the command succeeds and its output matches.
matches() {
    local pattern=$1 got
    shift
    got=$("$@" 2>&1) || { echo "$got" && return 1; }
    grep -Eq -- "$pattern" <<<"$got" || { printf '%s\nno match for: %s\n' "$got" "$pattern" && return 1; }
}

# apt_install PACKAGE…: from the bench's repository, as a user would; first ends what an earlier test was stopped at.
apt_install() {
    HOST_TIMEOUT=240 in_host env DEBIAN_FRONTEND=noninteractive sh -euc \
        'dpkg --configure -a; apt-get update -q && apt-get install -q -y "$@"' sh "$@"
}

# needs_packages: this test wants dstack-host installed; an earlier test usually did it.
needs_packages() {
    in_host sh -c 'dpkg-query -W -f "\${db:Status-Status}" dstack-host 2>/dev/null | grep -qx installed' && return
    must "apt install dstack-host" apt_install dstack-host
}
