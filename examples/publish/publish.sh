#!/usr/bin/env bash
# publish.sh ROOTFS PLACE OUT: what a pipeline does at its end: build, sign and push.
#
# PLACE is docker://HOST/NAME:TAG. SIGNING_KEY holds the private key in PEM, from the secrets of the pipeline; if it is
# encrypted, MKCFS_PASSPHRASE holds its passphrase. Credentials for the registry are those that skopeo or docker keep.
# OUT holds the store and may be thrown away afterwards; kept, it makes the next build and push faster.
set -euo pipefail
rootfs=$1
place=$2
out=$3
: "${SIGNING_KEY:?the private key in PEM}"

mkdir -p "$out"
mkcfs build "$rootfs" "$out/image.cfs" --store "$out/objects" --sign-key <(printf '%s\n' "$SIGNING_KEY")
mkcfs push "$out/image.cfs" --store "$out/objects" "$place" --json >"$out/push.json"
