#!/usr/bin/env bash
# update.sh PLACE KEY DIR: what a host does, at its start and for each update, as root: pull, mount, throw away the rest.
#
# PLACE is docker://HOST/NAME:TAG, KEY the public key in PEM: all that the host has to trust. Leaves in DIR
#   image.cfs   the image, and image.cfs.sig its signature
#   objects/    the contents of its files; an update fetches those that changed
#   root/       the mounted tree
# Run again when nothing has changed it does nothing but look.
set -euo pipefail
place=$1
key=$2
dir=$3

mkdir -p "$dir/root"
before=$(mkcfs digest "$dir/image.cfs" 2>/dev/null || true)
# The image is replaced only when its signature held and all of its objects are there: until then the old one serves.
mkcfs pull "$place" "$dir/image.cfs" --store "$dir/objects" --key "$key"
if [ "$(mkcfs digest "$dir/image.cfs")" != "$before" ] || ! mountpoint -q "$dir/root"; then
    if mountpoint -q "$dir/root"; then
        mkcfs umount "$dir/root"
    fi
    mkcfs mount "$dir/image.cfs" "$dir/root" --store "$dir/objects" --key "$key"
fi
mkcfs store gc --store "$dir/objects" --keep "$dir/image.cfs"
