#!/bin/bash
# Loads layers FIRST to END - 1 of the image that rsync writes into FOLDER:
#   load.sh FOLDER FIRST END [EARLY]
# EARLY 1: during the transfer, each layer as soon as it is complete, except the last one. The call without it
# then continues. The image that ends with a layer is called minga:part-..., until all are loaded.
set -euo pipefail
folder=$1 first=$2 end=$3 early=${4:-0}
part=minga:part-${folder##*/}-
owner=$folder/../loader

remove_parts() {
  docker image ls --quiet --filter 'reference=minga:part-*' | sort -u | xargs -r docker image rm --force >/dev/null
}

find "$folder/.." -mindepth 1 -maxdepth 1 -type d ! -name "${folder##*/}" -exec rm -rf {} +
echo $$ >"$owner"
exec 9>"$folder/../lock"
if ! flock --timeout 3600 9; then
  echo "the previous load has worked on one layer for an hour" >&2
  exit 1
fi
if ((early && first == 0)); then
  remove_parts # assume nothing
fi
last=$((early ? end - 1 : end))
for ((number = end - 2; number >= first; number--)); do
  if docker image inspect "$part$number" >/dev/null 2>&1; then
    break
  fi
done
for ((number++; number < last; number++)); do
  pieces=$folder/$(printf '%03d' "$number")
  until [ -e "$pieces.2.zst" ]; do # the last of three files from rsync
    if ! ((early)); then
      echo "rsync has ended without layer $number" >&2
      exit 1
    fi
    if [ "$(cat "$owner")" != $$ ]; then
      exit 0 # the next call continues
    fi
    sleep 0.5
  done
  # engines before Docker 23 cannot read zstd
  cat "$pieces".?.zst | zstd --decompress --stdout | docker image load --quiet
done
if ! ((early)); then
  remove_parts
fi
