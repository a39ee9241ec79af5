#!/usr/bin/env bash
# lazy.sh PLACE KEY DIR COMMAND [ARGUMENT…]: run a program of an image before the image is there, as an ordinary user.
#
# PLACE is docker://HOST/NAME:TAG, KEY the public key in PEM: all that has to be trusted. Leaves in DIR
#   objects/    what the program has read so far; the next run fetches none of it again
#   trace       which objects it read, in order: copied to another machine, it makes the first start there faster
set -euo pipefail
place=$1
key=$2
dir=$3
shift 3

mkdir -p "$dir/objects"
ahead=()
if [ -e "$dir/trace" ]; then
    ahead=(--prefetch "$dir/trace")
fi
exec mkcfs run "$place" --chroot --store "$dir/objects" --key "$key" --trace "$dir/trace" "${ahead[@]}" -- "$@"
