#!/usr/bin/env bash
# verify.sh OUT KEY: fails unless every byte in OUT is what the owner of the public KEY has signed.
#
# Needs neither a network nor privileges. OUT may come from anywhere: a cache, a mirror, a stranger.
set -euo pipefail
out=$1
key=$2

mkcfs verify "$out/image.cfs" --key "$key" --store "$out/objects"
