#!/bin/bash
# Needs: packages image
# Timeout: 700
# An app whose main program is a script (runner bash).
set -eu
. "$(dirname "$0")/lib/check.sh"
. "$VM_DIR/lib/app.sh"

needs_image
HOST_TIMEOUT=500 must "deploy a script" in_host dstackctl deploy --runner bash --script /srv/dstack/tests/apps/bash/main.sh \
    --name script --registry-insecure "$REGISTRY" -p 8300:80 -p 8390:8090
check "its page answers" eventually 30 matches 'Hello from a script' page 8300
check "the VM is running" vm_is active script
check "a secret without a key service is refused" must_fail 'key service' \
    in_host dstackctl deploy --key-provider none --name secret -e A=b /srv/dstack/examples/hello/docker-compose.yaml
HOST_TIMEOUT=150 check "it stops in order" in_host dstackctl vm stop script
check "and is removed" vm_remove script
