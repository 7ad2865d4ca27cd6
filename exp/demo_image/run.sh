#!/usr/bin/env bash
# Make the demo images once, train on them, and test.
# Any KEY VALUE can follow: bash exp/demo_image/run.sh SOLVER.MAX_EPOCH 2 OUTPUT_DIR output/short
set -euo pipefail
config=exp/$(basename "$(cd "$(dirname "$0")" && pwd)")/config.yaml
cd "$(dirname "$0")/../.."

python tools/make_demo_data.py --out data/demo_image --images --train 4000 --test 400
python tools/run_net.py --cfg "$config" "$@"
