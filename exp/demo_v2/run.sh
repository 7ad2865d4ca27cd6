#!/usr/bin/env bash
# Make the demo data once, train on it, test with all views, and test once more with shuffled frames.
# Any KEY VALUE can follow: bash exp/demo/run.sh SOLVER.MAX_EPOCH 2 OUTPUT_DIR output/short
# On a Slurm cluster, --slurm --nodes 2 makes the data here and submits two jobs; the second one waits for the first.
set -euo pipefail
config=exp/$(basename "$(cd "$(dirname "$0")" && pwd)")/config.yaml
cd "$(dirname "$0")/../.."

python tools/make_demo_data.py --out data/demo
python tools/run_net.py --cfg "$config" "$@"
echo "Control: the same checkpoint on the same clips with their frames in random order (chance is 12.5 %)."
python tools/run_net.py --cfg "$config" "$@" TRAIN.ENABLE False TEST.ENABLE True TEST.SHUFFLE_FRAMES True
