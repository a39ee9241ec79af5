#!/usr/bin/env bash
# build.sh ROOTFS OUT: the image of ROOTFS, signed, and its objects, into the directory OUT.
#
# SIGNING_KEY holds the private key in PEM, from the secrets of the pipeline; it never becomes a file.
# If it is encrypted, MKCFS_PASSPHRASE holds its passphrase.
set -euo pipefail
rootfs=$1
out=$2
: "${SIGNING_KEY:?the private key in PEM}"

mkdir -p "$out"
mkcfs build "$rootfs" "$out/image.cfs" --store "$out/objects" --sign-key <(printf '%s\n' "$SIGNING_KEY") \
    --json >"$out/build.json"
