#!/usr/bin/env bash
# Test the trained demo model; any KEY VALUE can follow.
set -euo pipefail
config=exp/$(basename "$(cd "$(dirname "$0")" && pwd)")/config.yaml
cd "$(dirname "$0")/../.."
python tools/run_net.py --cfg "$config" TRAIN.ENABLE False "$@"
