#!/usr/bin/env bash
# Test an experiment with the views of the reported accuracy: DATA_ROOT=/data bash exp/NAME/test.sh [KEY VALUE ...]
# The default weights are those that run.sh trained. TEST.CHECKPOINT_FILE_PATH takes other weights: a file, an address, or
# the name of released weights, such as that in the first lines of config.yaml.
# NUM_SHARDS 1 tests on one node what was trained on several; --slurm --nodes 1 does so on a Slurm cluster, after the
# training of the same OUTPUT_DIR.
set -euo pipefail
name=$1
shift
[ -z "${DATA_ROOT:-}" ] || export DATA_ROOT=$(realpath -m "$DATA_ROOT") # relative to the folder of the caller
cd "$(dirname "$0")/.."
config=exp/$name/test.yaml
[ -f "$config" ] || config=exp/$name/config.yaml # its views are those of the reported accuracy
exec python tools/run_net.py --cfg "$config" TRAIN.ENABLE False "$@"
