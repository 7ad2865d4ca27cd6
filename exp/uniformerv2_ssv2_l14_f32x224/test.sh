#!/usr/bin/env bash
# Test this experiment with the views of the reported accuracy: DATA_ROOT=/data bash exp/NAME/test.sh [KEY VALUE ...]
# It tests what run.sh trained; TEST.CHECKPOINT_FILE_PATH takes other weights: a file, an address, or a released name
# such as that in the head of config.yaml. NUM_SHARDS 1 tests on one node what was trained on several; --slurm --nodes 1
# does it on a cluster, after the training of the same OUTPUT_DIR.
set -euo pipefail
if [ ! -d "${DATA_ROOT:-}" ]; then
    echo "error: set DATA_ROOT to the folder of your data sets, now '${DATA_ROOT:-}': DATA_ROOT=/data bash $0" >&2
    exit 2
fi
DATA_ROOT=$(cd "$DATA_ROOT" && pwd)
folder=$(cd "$(dirname "$0")" && pwd)
cd "$folder/../.."
config=exp/${folder##*/}/test.yaml
[ -f "$config" ] || config=exp/${folder##*/}/config.yaml # its views are those of the reported accuracy

# The configuration has the lists and videos below data/; here they are below DATA_ROOT.
shown=$(python tools/run_net.py --cfg "$config" --show)
below() { sed -nE "s|^  $1: data/([^ ]*).*|\1|p" <<< "$shown"; }
python tools/run_net.py --cfg "$config" TRAIN.ENABLE False \
    DATA.PATH_TO_DATA_DIR "$DATA_ROOT/$(below PATH_TO_DATA_DIR)" \
    DATA.PATH_PREFIX "$DATA_ROOT/$(below PATH_PREFIX)" "$@"
