#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Lets an app become another compose file: kms-allow-upgrade.sh APP_ID COMPOSE_HASH
# The hash has 64 hexadecimal digits; the first 40 of them do, too. `dstackctl kms allow-upgrade` does the same.
set -eu

if [ $# -ne 2 ]; then
	echo "usage: ${0##*/} APP_ID COMPOSE_HASH" >&2
	exit 2
fi

exec busctl call org.dstack.kms1 /org/dstack/kms1 org.dstack.kms1.Manager AllowUpgrade ss "$1" "$2"
