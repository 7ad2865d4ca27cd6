#!/usr/bin/env bash
# Make the demo data once, train on it, test with all views, and test again with shuffled frames as a control.
# Any KEY VALUE can follow: bash exp/demo/run.sh SOLVER.MAX_EPOCH 4 OUTPUT_DIR output/short
# On a Slurm cluster, --slurm --nodes 2 makes the data here and submits two jobs; the second waits for the first.
set -euo pipefail
name=$1
shift
cd "$(dirname "$0")/.."
python tools/make_demo_data.py --out data/demo
bash exp/run.sh "$name" "$@"
echo "Control: the same checkpoint on the same clips with their frames in random order (chance is 12.5 %)."
bash exp/test.sh "$name" "$@" TEST.ENABLE True TEST.SHUFFLE_FRAMES True
