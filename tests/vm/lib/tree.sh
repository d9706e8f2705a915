# The host machine's file system: a minimal Debian 13, made once and cached by its inputs.
# What is common to both machines comes first, then the tree of the nspawn one; lib/qemu.sh makes a disk.
# shellcheck shell=bash

SUITE=${SUITE:-trixie}
MIRROR=${DEBIAN_MIRROR:-http://deb.debian.org/debian}
TREES=$CACHE/trees

# packages_of LIST: the packages that it names, as mmdebstrap wants them.
packages_of() { sed 's/#.*//' "$1" | tr -s '\n ' ',' | sed 's/^,//; s/,$//'; }

# cached NAME-ID TITLE COMMAND…: $TREES/NAME-ID, made by COMMAND DIRECTORY if it is not there; an interrupted build leaves
# nothing that is used.
cached() {
    local path=$TREES/$1 title=$2 new
    shift 2
    need_root "building the host machine"
    [ -e "$path/.complete" ] && return
    mkdir -p "$TREES"
    (
        lock "tree" "building the host machine's tree" wait
        [ -e "$path/.complete" ] && exit 0
        rm -rf "$path" "$TREES"/new.*
        ls -dt "${path%-*}"-* 2>/dev/null | tail -n +2 | xargs -r rm -rf # the last one is for going back
        new=$(mktemp -d "$TREES/new.XXXXXX")
        stage tree "$title" "$@" "$new" || exit 1
        mv "$new" "$path"
        touch "$path/.complete"
    ) || exit 1
}

# debian_into DIRECTORY LIST [OPTION…]: a minimal Debian with the packages of LIST.
debian_into() {
    local new=$1 list=$2
    shift 2
    mmdebstrap --variant=minbase --include="$(packages_of "$list")" \
        --aptopt='APT::Install-Recommends "false"' \
        --aptopt='Acquire::Retries "3"' \
        --dpkgopt='path-exclude=/usr/share/doc/*' \
        --dpkgopt='path-include=/usr/share/doc/dstack*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' \
        "$@" "$SUITE" - "$MIRROR" | tar -C "$new" --numeric-owner --xattrs --xattrs-include='*' -xf -
    chmod 755 "$new"
    echo dstack-host >"$new/etc/hostname"
    printf '127.0.0.1 localhost dstack-host\n::1 localhost\n' >"$new/etc/hosts"
    rm -f "$new/etc/apt/apt.conf.d/99mmdebstrap" "$new/etc/apt/sources.list" "$new/etc/apt/sources.list.d/0000"*
    : >"$new/etc/machine-id"
}

# tree_id: names the tree after everything that goes into it.
tree_id() {
    {
        echo "$SUITE $MIRROR"
        cat "$VM_DIR/lib/tree.sh" "$VM_DIR/lib/tree.packages" "$VM_DIR/lib/images.sh" "$TOP/guest-os/lib/oci.sh"
        cd "$VM_DIR" && find tree images -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum
    } | sha256sum | cut -c 1-16
}

tree_path() { echo "$TREES/host-$(tree_id)"; }

# tree_build: the nspawn machine's; it is made by a process of its own, for its own set -e.
tree_build() {
    cached "host-$(tree_id)" "building the Debian $SUITE host machine (once, about a minute)" \
        env MACHINE_KIND=nspawn "$VM_DIR/machine" make-tree
}

tree_make() {
    local new=$1
    set -eu
    debian_into "$new" "$VM_DIR/lib/tree.packages"
    cp -r --no-preserve=ownership "$VM_DIR/tree/." "$new/"
    echo 'nameserver 192.0.2.2' >"$new/etc/resolv.conf"
    useradd -R "$new" -m -s /bin/bash alice
    useradd -R "$new" -m -s /bin/bash bob
    systemctl --root="$new" -q mask getty.target console-getty.service apt-daily.timer \
        apt-daily-upgrade.timer dpkg-db-backup.timer fstrim.timer e2scrub_all.timer
    systemctl --root="$new" -q disable ssh.service ssh.socket knot.service
    systemctl --root="$new" -q enable bench-world.service bench-dns.service bench-private.service \
        bench-zones.service bench-acme.service docker-registry.service
    tree_acme "$new"
    images_make "$new"
}

# tree_acme TREE: the certificate of the bench's certificate authority, and the root that vouches for its door.
tree_acme() {
    # shellcheck disable=SC2016 # runs in the tree
    chroot "$1" sh -euc 'cd /etc/pebble
        make() { openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 "$@" 2>/dev/null; }
        make -subj /CN=bench-acme-door -keyout ca.key -out ca.pem
        make -extensions usr_cert -subj /CN=acme.test -addext subjectAltName=DNS:acme.test -CA ca.pem -CAkey ca.key -keyout server.key -out server.pem
        rm ca.key
        chmod 644 *
        chmod 600 /etc/knot/bench.secret'
}
