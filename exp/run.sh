#!/usr/bin/env bash
# Train an experiment, then test it: DATA_ROOT=/data bash exp/NAME/run.sh [KEY VALUE ...]
# On N nodes, the same command on each: DATA_ROOT=/data torchrun --nnodes N --nproc_per_node 8 --rdzv_backend c10d \
#     --rdzv_endpoint HOST:PORT --no-python bash exp/NAME/run.sh NUM_SHARDS N [KEY VALUE ...]
# On N nodes of a Slurm cluster: DATA_ROOT=/data bash exp/NAME/run.sh --slurm --nodes N [--partition P] [KEY VALUE ...]
set -euo pipefail
name=$1
shift
[ -z "${DATA_ROOT:-}" ] || export DATA_ROOT=$(realpath -m "$DATA_ROOT") # relative to the folder of the caller
cd "$(dirname "$0")/.."
exec python tools/run_net.py --cfg "exp/$name/config.yaml" "$@"
