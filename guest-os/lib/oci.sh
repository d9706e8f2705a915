# SPDX-License-Identifier: Apache-2.0
# OCI image layouts (image-spec 1.0), written without a container engine.
# shellcheck shell=bash

# oci_layout DIR CONFIG TAR…: an image of these layers. CONFIG is the JSON object "config" of the image's configuration.
oci_layout() {
    local oci=$1 config=$2 tar diffs=() layers=() parts
    shift 2
    parts=$(mktemp -d)
    mkdir -p "$oci/blobs/sha256"
    for tar in "$@"; do
        diffs+=("sha256:$(sha256sum <"$tar" | cut -c 1-64)")
        gzip -n -6 <"$tar" >"$parts/layer"
        layers+=("$(oci_blob "$oci" "$parts/layer" application/vnd.oci.image.layer.v1.tar+gzip)")
    done
    jq -n --argjson config "$config" '{architecture: "amd64", os: "linux", created: "1970-01-01T00:00:00Z",
        config: $config, rootfs: {type: "layers", diff_ids: $ARGS.positional}}' --args "${diffs[@]}" >"$parts/config"
    jq -n --argjson config "$(oci_blob "$oci" "$parts/config" application/vnd.oci.image.config.v1+json)" \
        '{schemaVersion: 2, mediaType: "application/vnd.oci.image.manifest.v1+json", config: $config,
          layers: [$ARGS.positional[] | fromjson]}' --args "${layers[@]}" >"$parts/manifest"
    jq -n --argjson manifest "$(oci_blob "$oci" "$parts/manifest" application/vnd.oci.image.manifest.v1+json)" \
        '{schemaVersion: 2, manifests: [$manifest]}' >"$oci/index.json"
    echo '{"imageLayoutVersion": "1.0.0"}' >"$oci/oci-layout"
    rm -rf "$parts"
}

# oci_blob DIR FILE TYPE: stores FILE; prints its descriptor.
oci_blob() {
    local digest
    digest=$(sha256sum <"$2" | cut -c 1-64)
    cp "$2" "$1/blobs/sha256/$digest"
    jq -nc --arg type "$3" --arg digest "sha256:$digest" --argjson size "$(stat -c %s "$2")" \
        '{mediaType: $type, digest: $digest, size: $size}'
}
