#!/usr/bin/env bash
# rootless.sh IMAGE STORE KEY DIR: what an ordinary user does with an image, without root and without a daemon.
#
# IMAGE and STORE are as `mkcfs build` or `mkcfs pull` left them, KEY is the public key in PEM. Leaves in DIR
#   upper/      what the second command changed, as an overlay keeps it
#   release     what the third one read
# Where /dev/fuse is closed to users, or fusermount3 is missing, only the first two work.
set -euo pipefail
image=$1
store=$2
key=$3
dir=$4

mkdir -p "$dir/upper" "$dir/work" "$dir/root"

# A program of the image, with the image as its root: names and owners are what the image says, nothing is unpacked.
mkcfs run "$image" --chroot --store "$store" --key "$key" -- /bin/sh -c 'cat /etc/os-release'

# The same, with changes, which go to DIR/upper: image and store stay as they are, and other runs do not see them.
mkcfs run "$image" --chroot --store "$store" --key "$key" --rw --upper "$dir/upper" --work "$dir/work" \
    -- /bin/sh -c 'echo "changed by $(id -u)" >/etc/changed'

# The tree for all programs of this user, until it is unmounted; every block that is read is compared with its digest.
mkcfs mount "$image" "$dir/root" --store "$store" --key "$key"
trap 'mkcfs umount "$dir/root"' EXIT
cp "$dir/root/etc/os-release" "$dir/release"
