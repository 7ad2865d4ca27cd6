#!/usr/bin/env bash
# Make the image data once, train on it, and test. Any KEY VALUE can follow.
set -euo pipefail
name=$(basename "$(cd "$(dirname "$0")" && pwd)")
cd "$(dirname "$0")/../.."
python tools/make_demo_data.py --out data/demo_image --images --train 4000 --test 400
exec bash exp/run.sh "$name" "$@"
