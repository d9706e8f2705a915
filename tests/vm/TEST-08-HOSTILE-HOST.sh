#!/bin/bash
# Needs: packages image
# Timeout: 2400
# A host that owns the machine and wants an app's keys, disk or secrets: each attempt is refused or detected.
set -eu
. "$(dirname "$0")/lib/check.sh"
. "$VM_DIR/lib/app.sh"
. "$VM_DIR/lib/keys.sh"

DISKS=/var/lib/private/dstack-vm
VMS=/var/lib/dstack/teepod/vms

disk_of() { echo "$DISKS/$1/data.qcow2"; }
config_of() { echo "$VMS/$1/config.tar"; }
both_active() { vm_is active victim && vm_is active other; }
stop() { HOST_TIMEOUT=150 in_host dstackctl vm stop "$1"; }

# refuses WHAT REGEX VM: the VM does not come up, and says why. SINCE is for kms_said.
refuses() {
    SINCE=$(in_host date +%s)
    HOST_TIMEOUT=400 refused "$1" "$2" in_host dstackctl vm start "$3"
    in_host_sh 'systemctl stop "$1" 2>/dev/null; systemctl reset-failed "$1" 2>/dev/null || :' "$(unit_of "$3")" || :
}

# kms_said REGEX: the key service's own reason for the last refusal.
kms_said() { matches "$1" in_host journalctl -q --no-pager -o cat -u dstack-kms.service --since "@$SINCE"; }
status_of() { in_host systemctl show -P StatusText "$(unit_of "$1")"; }

# content_of FILE MEMBER: where a member's bytes begin in a config disk.
content_of() { in_host_sh 'o=$(grep -abo "$2" "$1" | head -n 1 | cut -d : -f 1); echo $((o + 512))' "$1" "$2"; }
size_of() { in_host_sh 'tar -tvf "$1" | awk -v m="$2" "\$NF == m { print \$3 }"' "$1" "$2"; }

needs_kms
# Values of one length, so that one blob can stand in for the other.
in_host_sh 'printf "API_TOKEN=token-of-one\n" >/root/v.env; printf "API_TOKEN=token-of-two\n" >/root/o.env'
must "deploy the victim" in_host dstackctl --no-wait deploy "$KEYS_APP" --name victim --key-provider kms --rollback refuse \
    --env-file /root/v.env --registry-insecure "$REGISTRY" -m 1536M -p 8410:80
must "deploy another app" in_host dstackctl --no-wait deploy "$KEYS_APP" --name other --key-provider kms --rollback warn \
    --env-file /root/o.env --registry-insecure "$REGISTRY" -m 1536M -p 8411:80
TAIL=40 must "both come up" eventually 600 both_active
APP=$(vm_field victim app_id)
check "they are two apps" in_host test "$APP" != "$(vm_field other app_id)"
check "a note on the victim's disk" equals kept ask_app 8410 note kept

# --- from inside a container ----------------------------------------------------------------------
check "t07 a container gets no root keys, app keys or certificates of the key service" in_host_sh \
    'page=$(curl -sS --max-time 40 "http://127.0.0.1:8410/cgi-bin/kms?$1"); echo "$page"; [ "$(echo "$page" | grep -c .)" = 3 ]
     ! echo "$page" | grep -E "k256_key|disk_crypt_key|ca_key|BEGIN CERTIFICATE"' "$KMS"
check "t19 the key service is reached by guests all the same" in_host_sh \
    'curl -sS --max-time 40 "http://127.0.0.1:8410/cgi-bin/kms?$1" | grep -q error' "$KMS"

# --- disks ----------------------------------------------------------------------------------------
check "stop the victim" stop victim
check "stop the other" stop other
check "keep a copy of the victim's disk" in_host_sh 'cp --sparse=always "$1" /root/older.qcow2' "$(disk_of victim)"
check "and of the other's" in_host_sh 'cp --sparse=always "$1" /root/other.qcow2' "$(disk_of other)"
older() { in_host_sh 'mv "$1" "$1.mine"; cp --sparse=always --preserve=all "$2" "$1"; chown --reference="$1.mine" "$1"' "$(disk_of "$1")" "$2"; }
swap() { in_host_sh 'mv "$1" "$1.mine"; cp --sparse=always --preserve=all "$2" "$1"
    chown --reference="$1.mine" "$1"' "$(disk_of victim)" "$(disk_of other)"; }
check "give the victim another app's disk" swap
refuses "t13 another app's disk is refused" 'the data disk belongs to another instance' victim
check "t13 and left untouched" in_host qemu-img compare -q "$(disk_of victim)" "$(disk_of other)"
scratch() { in_host_sh 'cp --sparse=always --preserve=all "$1.mine" "$1"; s=$(stat -c %s "$1")
    qemu-img dd -f qcow2 -O raw bs=4096 count=64 if="$1" of=/tmp/head >/dev/null; sed -i "s/aes-xts-plain64/cipher_null-ecb/" /tmp/head
    qemu-io -f qcow2 -c "write -s /tmp/head 0 $(stat -c %s /tmp/head)" "$1" >/dev/null' "$(disk_of victim)"; }
check "give it its own disk with a null cipher in the header" scratch
refuses "p01 a header of the host is refused" 'the data disk belongs to another instance or is damaged' victim
check "its own disk again" in_host_sh 'mv "$1.mine" "$1"' "$(disk_of victim)"

# --- config disk ----------------------------------------------------------------------------------
edit() { in_host_sh 'cp -p "$1" "$1.mine"; sed -i "s/EXTRA:-unset/EXTRA:-spied/" "$1"; ! cmp -s "$1" "$1.mine"' "$(config_of victim)"; }
check "edit the victim's app-compose.json" edit
refuses "t06 an edited app gets no keys" 'the key service refused the app keys' victim
check "the key service did, for its compose hash" kms_said "compose hash [0-9a-f]{64} is not allowed for app $APP"
check "put it back" in_host_sh 'mv "$1.mine" "$1"' "$(config_of victim)"
foreign_env() {
    local from to size
    from=$(content_of "$(config_of other)" encrypted-env) to=$(content_of "$(config_of victim)" encrypted-env)
    size=$(size_of "$(config_of victim)" encrypted-env)
    [ "$size" = "$(size_of "$(config_of other)" encrypted-env)" ] || { echo "the blobs differ in size" && return 1; }
    in_host_sh 'cp -p "$2" "$2.mine"; dd if="$1" of="$2" bs=1 skip="$3" seek="$4" count="$5" conv=notrunc status=none' \
        "$(config_of other)" "$(config_of victim)" "$from" "$to" "$size"
}
check "give it another app's secrets" foreign_env
refuses "p06 another app's secrets end the boot" 'the encrypted environment cannot be decrypted' victim
check "put its own back" in_host_sh 'mv "$1.mine" "$1"' "$(config_of victim)"

# --- identity -------------------------------------------------------------------------------------
HOST_TIMEOUT=400 refused "t01 an app of another text with the victim's id gets no keys" "allow-upgrade $APP [0-9a-f]{64}" \
    in_host_sh 'sed "s/EXTRA:-unset/EXTRA:-evil/" "$1" >/root/evil.yaml
        dstackctl deploy /root/evil.yaml --name evil --app-id "$2" --key-provider kms --registry-insecure "$3"' "$KEYS_APP" "$APP" "$REGISTRY"
check "remove it" vm_remove evil
refused "t12 an app that wants authenticated time is refused in words" 'authenticated time' in_host_sh \
    'dstackctl --json deploy "$1" --name time --key-provider kms --registry-insecure "$2" --dry-run | jq -r .app_compose |
     jq -c ".secure_time = true" >/root/time.json; dstackctl deploy /root/time.json --name time --no-start' "$KEYS_APP" "$REGISTRY"

# --- the image ------------------------------------------------------------------------------------
IMAGE=$(in_host_sh 'basename "$(ls -d /var/lib/dstack/images/dstack-[0-9]* | head -n 1)"')
UKI="/var/lib/dstack/images/$IMAGE/guest.efi"
check "allow this image alone, by its measurements" in_host_sh 'mkdir -p /etc/dstack/policy.d
    dstackctl measure "$1" --vcpus 1 --memory 1536M --platform simulated --policy >/etc/dstack/policy.d/image.toml
    cat /etc/dstack/policy.d/image.toml; systemctl reload dstack-kms.service' "/var/lib/dstack/images/$IMAGE"
check "start the other, too" in_host dstackctl --no-wait vm start other
HOST_TIMEOUT=500 check "t02 it gets its keys" in_host dstackctl vm start victim
check "and its disk" equals kept eventually 20 ask_app 8410 note
TAIL=40 check "the other is up, too" eventually 400 vm_is active other
check "pull the plugs" in_host_sh 'dstackctl vm kill victim; dstackctl vm kill other'
check "give both the disks of their first boots" eval 'older victim /root/older.qcow2 && older other /root/other.qcow2'
check "the other's app wants to be warned alone" in_host dstackctl --no-wait vm start other
refuses "p07 t13 an older disk is refused" 'the data disk is older than the key service knows' victim
check "p07 and left untouched" in_host qemu-img compare -q "$(disk_of victim)" /root/older.qcow2
check "the key service says how a backup is restored" kms_said "forget-disk|older"
TAIL=40 check "t13 the other boots with its older disk" eventually 400 vm_is active other
check "t13 and the key service says so" kms_said 'goes on with an older data disk: the data disk .epoch [0-9]+. is older'
check "the operator lets the backup pass" in_host dstackctl kms forget-disk "$APP" "$(vm_field victim instance_id)"
HOST_TIMEOUT=500 check "t13 once, the older disk is taken" in_host dstackctl vm start victim
check "with what it has" equals kept eventually 20 ask_app 8410 note
check "pull its plug" in_host dstackctl vm kill victim
check "its newest disk again" in_host_sh 'mv "$1" /root/older.qcow2; mv "$1.mine" "$1"' "$(disk_of victim)"
refuses "t13 which is the older one now" 'the data disk is older than the key service knows' victim
check "the one that the key service knows" in_host_sh 'chown --reference="$1" /root/older.qcow2; mv /root/older.qcow2 "$1"; rm /root/other.qcow2' "$(disk_of victim)"
check "change one word of the measured command line" in_host_sh \
    'cp -p "$1" /root/uki; sed -i "s/lockdown=confidentiality/lockdown=cOnfidentiality/" "$1"; ! cmp -s "$1" /root/uki' "$UKI"
refuses "t02 the changed image gets no keys" 'the key service refused the app keys' victim
check "the key service did, for a register of the image" kms_said 'RTMR'
check "put the image back" in_host_sh 'cp -p /root/uki "$1"; rm /etc/dstack/policy.d/image.toml; systemctl reload dstack-kms.service' "$UKI"

# --- realm ----------------------------------------------------------------------------------------
# The simulated TEE gets another root, so the VM is of another realm than the key service that its app pins.
ROOT=/var/lib/dstack/testroot
check "give the machine another root" in_host_sh 'cp -a "$1" "$1.mine"; rm "$1"/testroot.*
    /usr/libexec/dstack/dstack-quote-sim --make-root "$1"; ! cmp -s "$1/testroot.pem" "$1.mine/testroot.pem"
    systemctl restart dstack-quote-sim.service' "$ROOT"
refuses "t04 a key service of another realm gives a VM no keys" 'realm|refused the app keys' victim
check "put the root back" in_host_sh 'rm -r "$1"; mv "$1.mine" "$1"; systemctl restart dstack-quote-sim.service' "$ROOT"

# --- time, and a device that changes --------------------------------------------------------------
# A QEMU whose clock is a year behind, and a config disk that is edited once the guest has read it.
printf '#!/bin/sh\nexec /usr/bin/qemu-system-x86_64 "$@" -rtc base=%s\n' "$(date -u -d '1 year ago' +%FT%T)" >"$OUT/qemu-late"
late_qemu() { machine_copy "$OUT/qemu-late" /usr/local/bin/qemu-late && in_host_sh 'chmod 755 /usr/local/bin/qemu-late
    qemu-late --version; printf "[cvm]\nqemu_path = \"/usr/local/bin/qemu-late\"\n" >/etc/dstack/teepod.toml.d/60-late.toml
    systemctl restart dstack-teepod.service'; }
STOPPED=$(in_host date +%s)
check "set the VM's clock back a year" late_qemu
check "start the victim" in_host dstackctl --no-wait vm start victim
TAIL=40 check "once it has read its inputs" eventually 200 matches '(keys|disk|docker) [0-9.]+' status_of victim
check "edit them in place" in_host_sh 'cp -p "$1" "$1.mine"; sed "s/EXTRA:-unset/EXTRA:-spied/" "$1.mine" >/root/edited
    dd if=/root/edited of="$1" conv=notrunc status=none; ! cmp -s "$1" "$1.mine"' "$(config_of victim)"
TAIL=40 must "the victim boots" eventually 400 vm_is active victim
check "t06 with the inputs that were measured" matches 'EXTRA=unset' eventually 20 ask_app 8410 env
time_of() { ask_app 8410 env | sed -n 's/^DATE=//p'; }
check "t12 and not before the time at which its disk was last written" test "$(time_of)" -ge "$((STOPPED - 600))"
check "with what it had" equals kept eventually 20 ask_app 8410 note
check "the right clock again" in_host_sh 'mv "$1.mine" "$1"; rm /etc/dstack/teepod.toml.d/60-late.toml /usr/local/bin/qemu-late
    systemctl restart dstack-teepod.service' "$(config_of victim)"
check "remove both" vm_remove victim other
check "no unit failed" equals "" in_host_sh 'systemctl reset-failed "dstack-vm@*" || :; systemctl --failed --no-legend --plain'
