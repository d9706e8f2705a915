# Tiny container images from the tree's static busybox, put into the registry's storage when the tree
# is made. No registry is in reach of the bench, so it brings its own: registry.test:5000.
# shellcheck shell=bash

. "$TOP/guest-os/lib/oci.sh"

IMAGES=(hello-web hello-counter bench keys ingress relay)

# images_make TREE: every image of the bench, pushed into the registry of TREE.
images_make() {
    local tree=$1 work image
    work=$(mktemp -d)
    images_base "$tree" "$work/base"
    for image in "${IMAGES[@]}"; do
        image_root "$tree" "$image" "$work/$image.root"
        image_layout "$work" "$image"
        mkdir -p "$tree/srv/images"
        cp -r "$work/$image.oci" "$tree/srv/images/$image"
    done
    images_push "$tree"
    rm -rf "$work"
}

# images_base TREE DIR: the files that all images share.
images_base() {
    local tree=$1 base=$2 applet
    mkdir -p "$base"/{bin,etc,tmp,data,www/cgi-bin}
    chmod 1777 "$base/tmp"
    cp "$tree/bin/busybox" "$base/bin/busybox"
    "$base/bin/busybox" --list | while read -r applet; do
        [ "$applet" = busybox ] || ln -s busybox "$base/bin/$applet"
    done
    echo 'root:x:0:0:root:/:/bin/sh' >"$base/etc/passwd"
    echo 'root:x:0:' >"$base/etc/group"
}

# image_root TREE IMAGE DIR: what IMAGE adds to the base: its own files, and the programs of TREE in its file `programs`
# with the libraries that they need.
image_root() {
    local tree=$1 source=$VM_DIR/images/$2 dir=$3 program
    mkdir -p "$dir"
    [ ! -d "$source/root" ] || cp -a "$source/root/." "$dir/"
    [ -e "$source/programs" ] || return 0
    while read -r program; do
        install -m 755 -D "$tree$program" "$dir/bin/${program##*/}"
        chroot "$tree" ldd "$program" | grep -o '/[^ ]*' | while read -r library; do
            install -m 755 -D "$tree$library" "$dir$library"
        done
    done <"$source/programs"
}

# image_layout WORK IMAGE: an OCI layout WORK/IMAGE.oci of the base layer and WORK/IMAGE.root.
image_layout() {
    local work=$1 image=$2 dir tars=()
    for dir in base "$image.root"; do
        tars+=("$work/$dir.tar")
        tar -C "$work/$dir" --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -cf "$work/$dir.tar" .
    done
    oci_layout "$work/$image.oci" "$(jq '{Env: ["PATH=/bin"]} + .' "$VM_DIR/images/$image/config.json")" "${tars[@]}"
}

# images_push TREE: run TREE's own registry in an empty network namespace and push with TREE's skopeo.
images_push() {
    # shellcheck disable=SC2016 # runs in the tree
    unshare --net --pid --fork --kill-child --mount-proc chroot "$1" sh -euc '
        ip link set lo up
        REGISTRY_HTTP_ADDR=127.0.0.1:5000 setpriv --reuid docker-registry --regid docker-registry --clear-groups \
            docker-registry serve /etc/docker/registry/bench.yml &
        for image in "$@"; do
            skopeo --insecure-policy copy --retry-times 8 --dest-tls-verify=false \
                "oci:/srv/images/$image" "docker://127.0.0.1:5000/$image:1"
        done' sh "${IMAGES[@]}"
    rm -rf "$1/srv/images"
}
