#!/bin/bash
# Loads layers FIRST to END - 1 of the image that rsync brings into FOLDER, each as soon as it is there:
#   load.sh FOLDER FIRST END
# Of a layer's three pieces the last comes last. The image that ends with a layer stays until the next one is there:
# after a deploy that was cut short the next goes on from it. Who waits too long for this is Ansible's to say.
set -euo pipefail
folder=$1 first=$2 end=$3
owner=$folder/../loader

find "$folder/.." -mindepth 1 -maxdepth 1 ! -name "${folder##*/}" -exec rm -rf {} +
echo $$ >"$owner"
for ((number = first; number < end; number++)); do
  pieces=$folder/$(printf '%03d' "$number")
  until [ -e "$pieces.2.zst" ]; do
    if [ "$(cat "$owner")" != $$ ]; then
      echo "another deploy has taken over" >&2
      exit 1
    fi
    sleep 0.5
  done
  # engines before Docker 23 do not know zstd themselves
  cat "$pieces".?.zst | zstd --decompress --stdout | docker image load --quiet
  docker image rm "minga:part-$((number - 1))" >/dev/null 2>&1 || true # the first layer follows none
done
