#!/bin/sh
# Starts a worker on this PC. Address and token stand in the ps's terminal.
# Set values here, after the :- signs, or in the environment, which wins. Empty: as the ps says.
set -eu

MASTER_ADDR=${MASTER_ADDR:-}              # address of the ps, for example 192.168.1.100
MASTER_PORT=${MASTER_PORT:-30005}         # its port
MINGA_TOKEN=${MINGA_TOKEN:-}              # its join token
WORKER_RANK=${WORKER_RANK:-}              # 1, 2, 3 ...; empty: the lowest free one
WORLD_SIZE=${WORLD_SIZE:-}                # 1 ps + the workers, as at the ps
EPOCHS=${EPOCHS:-}                        # as at the ps, which decides
DATASET_URL=${DATASET_URL:-}              # the training data on this PC
VAL_DATASET_URL=${VAL_DATASET_URL:-}      # validation data, if they are elsewhere
USE_WEBDATASET=${USE_WEBDATASET:-false}   # true: the data are WebDataset shards

export MASTER_ADDR MASTER_PORT MINGA_TOKEN WORKER_RANK WORLD_SIZE
export EPOCHS DATASET_URL VAL_DATASET_URL USE_WEBDATASET
cd "$(dirname "$0")"
[ -n "${MINGA_BIN:-}" ] || make -s setup
exec "${MINGA_BIN:-.venv/bin/minga}" worker "$@"
