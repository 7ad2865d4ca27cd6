#!/usr/bin/env bash
# Test the trained demo model with all views; any KEY VALUE can follow.
set -euo pipefail
cd "$(dirname "$0")/../.."
python tools/run_net.py --cfg exp/demo/config.yaml TRAIN.ENABLE False "$@"
