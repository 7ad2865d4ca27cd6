#!/usr/bin/env bash
# Train this experiment, then test it: DATA_ROOT=/data bash exp/NAME/run.sh [KEY VALUE ...]
# On N nodes, the same on each: DATA_ROOT=/data torchrun --nnodes N --nproc_per_node 8 --rdzv_backend c10d \
#     --rdzv_endpoint HOST:PORT --no-python bash exp/NAME/run.sh [KEY VALUE ...]
# On N nodes of a Slurm cluster: DATA_ROOT=/data bash exp/NAME/run.sh --slurm --nodes N [--partition P] [KEY VALUE ...]
set -euo pipefail
if [ ! -d "${DATA_ROOT:-}" ]; then
    echo "error: set DATA_ROOT to the folder of your data sets, now '${DATA_ROOT:-}': DATA_ROOT=/data bash $0" >&2
    exit 2
fi
DATA_ROOT=$(cd "$DATA_ROOT" && pwd)
folder=$(cd "$(dirname "$0")" && pwd)
cd "$folder/../.."
config=exp/${folder##*/}/config.yaml

# The configuration has the lists and videos below data/; here they are below DATA_ROOT.
shown=$(python tools/run_net.py --cfg "$config" --show)
below() { sed -nE "s|^  $1: data/([^ ]*).*|\1|p" <<< "$shown"; }
python tools/run_net.py --cfg "$config" \
    DATA.PATH_TO_DATA_DIR "$DATA_ROOT/$(below PATH_TO_DATA_DIR)" \
    DATA.PATH_PREFIX "$DATA_ROOT/$(below PATH_PREFIX)" "$@"
