#!/usr/bin/env bash
# import.sh SOURCE OUT [PLATFORM]: the composefs image of a container image, its objects, and what it was made of.
#
# SOURCE is anything `mkcfs build` takes: oci-archive:app.tar, docker-archive:app.tar, oci:layout:latest, layer.tar.gz.
# Leaves in the directory OUT
#   image.cfs       the image; the same container image always gives the same bytes, in whatever form it comes
#   image.digest    its fs-verity digest, the line to pin or to publish
#   import.json     manifest, config and layers with their digests, and where other tools would see another tree
#   objects/        the contents, shared by all images imported into OUT
set -euo pipefail
source=$1
out=$2
options=(${3:+--platform "$3"})

mkdir -p "$out"
mkcfs build "$source" "$out/image.cfs" --store "$out/objects" "${options[@]}" --json >"$out/import.json"
(cd "$out" && mkcfs digest image.cfs >image.digest)

# What anyone can do who has the digest from a place they trust, and the rest from anywhere:
mkcfs verify "$out/image.cfs" --store "$out/objects" --digest-file "$out/image.digest"
