#!/bin/sh
# Starts the parameter server on this PC and says how workers join it.
# Set values here, after the :- signs, or in the environment, which wins. Empty: as train.yaml says.
set -eu

MASTER_PORT=${MASTER_PORT:-30005}         # open this port (TCP) in this PC's firewall
WORLD_SIZE=${WORLD_SIZE:-2}               # 1 ps + the workers you expect; more may come
EPOCHS=${EPOCHS:-}                        # passes over the training set
DATASET_URL=${DATASET_URL:-}              # where the data are on each worker
VAL_DATASET_URL=${VAL_DATASET_URL:-}      # validation data, if they are elsewhere
USE_WEBDATASET=${USE_WEBDATASET:-false}   # true: the data are WebDataset shards

export MASTER_PORT WORLD_SIZE EPOCHS DATASET_URL VAL_DATASET_URL USE_WEBDATASET
cd "$(dirname "$0")"
[ -n "${MINGA_BIN:-}" ] || make -s setup
exec "${MINGA_BIN:-.venv/bin/minga}" ps "$@"
