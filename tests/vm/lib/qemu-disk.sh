# The disk of the QEMU host machine. What Debian gives is made once and cached by its inputs: root, vmlinuz and initrd; the
# packages of dstack come with each start.
# shellcheck shell=bash

disk_id() {
    {
        echo "$SUITE $MIRROR"
        cat "$VM_DIR/lib/tree.sh" "$VM_DIR/lib/qemu-disk.sh" "$VM_DIR/lib/qemu.packages"
        cd "$VM_DIR/tree/etc" && sha256sum apt/sources.list.d/* apt/apt.conf.d/* systemd/journald.conf.d/*
    } | sha256sum | cut -c 1-16
}

disk_path() { echo "$TREES/qemu-$(disk_id)"; }

machine_build() {
    tree_build
    cached "qemu-$(disk_id)" "building the QEMU host machine (once, about a minute)" "$VM_DIR/machine" make-tree
    disk_path
}

machine_make() {
    local new=$1 root=$1/root
    set -eu
    mkdir "$root"
    # The initrd only has to find the disk.
    # shellcheck disable=SC2016 # of mmdebstrap's shell
    debian_into "$root" "$VM_DIR/lib/qemu.packages" --essential-hook='mkdir -p "$1/etc/initramfs-tools/conf.d" &&
        echo MODULES=list >"$1/etc/initramfs-tools/conf.d/bench" && echo virtio_blk >"$1/etc/initramfs-tools/modules"'
    disk_settings "$root"
    mv "$root"/boot/vmlinuz-* "$new/vmlinuz"
    mv "$root"/boot/initrd.img-* "$new/initrd"
}

# disk_install DIRECTORY PACKAGE…: DIRECTORY/root.img of the cached tree, with packages of DIRECTORY/apt. They are installed
# by this machine's processor: under emulation it takes minutes.
disk_install() {
    local dir=$1
    shift
    mkdir -p "$dir"/{root,upper,work}
    # shellcheck disable=SC2016 # of the inner shells
    unshare --mount sh -euc 'cd "$2"
        mount -t overlay bench -o "lowerdir=$1/root,upperdir=$2/upper,workdir=$2/work" root
        shift 2
        if [ $# -gt 0 ]; then
            mount --bind apt root/srv/dstack/apt; mount --rbind /dev root/dev; mount -t proc proc root/proc
            chroot root env DEBIAN_FRONTEND=noninteractive sh -euc "apt-get update -q
                apt-get install -q -y --no-install-recommends \"\$@\"" sh "$@"
            umount -l root/dev root/proc root/srv/dstack/apt
        fi
        mke2fs -q -t ext4 -O ^has_journal -d root root.img 4G' sh "$(disk_path)" "$dir" "$@" >"$LOGS/machine-qemu-disk.log" 2>&1 ||
        die "the disk of the QEMU host machine cannot be made: $(tail -n 5 "$LOGS/machine-qemu-disk.log")"
    rm -rf "$dir"/{root,upper,work}
}

disk_settings() {
    local root=$1
    (cd "$VM_DIR/tree" && cp -r --parents --no-preserve=ownership etc/apt etc/systemd/journald.conf.d "$root/")
    echo 'LABEL=bench /srv/dstack/apt ext4 ro 0 0' >"$root/etc/fstab"
    mkdir -p "$root/srv/dstack/apt"
    printf '[Match]\nName=eth0\n[Network]\nAddress=10.0.2.15/24\nGateway=10.0.2.2\nLinkLocalAddressing=no\n' \
        >"$root/etc/systemd/network/bench.network"
    # What a boot under emulation need not wait for.
    touch "$root/etc/.updated" "$root/var/.updated"
    printf 'blacklist %s\n' kvm_amd kvm_intel >"$root/etc/modprobe.d/bench.conf"
    systemctl --root="$root" -q mask getty.target serial-getty@ttyS0.service apt-daily.timer apt-daily-upgrade.timer \
        dpkg-db-backup.timer fstrim.timer e2scrub_all.timer systemd-networkd-wait-online.service
    systemctl --root="$root" -q enable systemd-networkd.service ssh.service
}
