# The disk of the QEMU host machine, made once and cached by its inputs: root.img, and the kernel and initrd that boot it.
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

# machine_make DIRECTORY: root.img, vmlinuz and initrd.
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
    mke2fs -q -t ext4 -O ^has_journal -d "$root" "$new/root.img" 4G
    rm -rf "$root"
}

disk_settings() {
    local root=$1
    (cd "$VM_DIR/tree" && cp -r --parents --no-preserve=ownership etc/apt etc/systemd/journald.conf.d "$root/")
    echo 'LABEL=bench /srv/dstack/apt ext4 ro 0 0' >"$root/etc/fstab"
    mkdir -p "$root/srv/dstack/apt"
    printf '[Match]\nName=eth0\n[Network]\nAddress=10.0.2.15/24\nAddress=192.0.2.1/24\nGateway=10.0.2.2\nLinkLocalAddressing=no\n' \
        >"$root/etc/systemd/network/bench.network"
    # What a boot under emulation need not wait for.
    touch "$root/etc/.updated" "$root/var/.updated"
    printf 'blacklist %s\n' kvm_amd kvm_intel >"$root/etc/modprobe.d/bench.conf"
    systemctl --root="$root" -q mask getty.target serial-getty@ttyS0.service apt-daily.timer apt-daily-upgrade.timer \
        dpkg-db-backup.timer fstrim.timer e2scrub_all.timer systemd-networkd-wait-online.service
    systemctl --root="$root" -q enable systemd-networkd.service ssh.service
}
