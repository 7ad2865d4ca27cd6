#!/usr/bin/env bash
# Run all checks and benchmarks that need a GPU, unattended, in under 9 minutes, and leave JSON and logs in a folder:
#     bash benchmarks/gpu.sh OUT [--device cpu --quick]
# A failed part does not stop the others; the exit code is 1 if any failed. Packages must be installed; no network is used.
set -u
cd "$(dirname "$0")/.."
out=${1:?folder for the results}
shift
device=cuda quick=
while [ $# -gt 0 ]; do
    case $1 in
    --device) device=$2 && shift ;;
    --quick) quick=1 ;;
    *) echo "unknown option $1" >&2 && exit 2 ;;
    esac
    shift
done
mkdir -p "$out"
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
failed=0

part() { # NAME SECONDS COMMAND...: run a part within a time limit
    local name=$1 limit=$2 start=$SECONDS code=0
    shift 2
    timeout "$limit" "$@" >"$out/$name.log" 2>&1 || code=$?
    printf '%-28s exit code %3d, %4d s\n' "$name" $code $((SECONDS - start)) | tee -a "$out/summary.txt"
    [ $code -eq 0 ] || failed=1
    tail -n 8 "$out/$name.log" >>"$out/summary.txt"
}

model() { # NAME EXPERIMENT BATCH [OPTION...]
    local name=$1 experiment=$2 batch=$3
    shift 3
    part "$name" 75 python benchmarks/model.py "$experiment" --batch "$batch" --device $device "$@" --json "$out/$name.json"
}

if [ -n "$quick" ]; then
    small=(MODEL.NUM_CLASSES 8 DATA.NUM_FRAMES 4 DATA.TEST_CROP_SIZE 64)
    model uniformer_s uniformer_s16x4_k400 1 --rounds 1 "${small[@]}" UNIFORMER.DEPTH "[1, 1, 1, 1]"
    exit $failed
fi
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader >"$out/card.txt" 2>&1
part tests 120 python -m pytest -q -m gpu -p no:cacheprovider
part demo 150 bash exp/demo/run.sh NUM_GPUS 1 TRAIN.MIXED_PRECISION True OUTPUT_DIR "$out/demo"
model uniformer_s16 uniformer_s16x4_k400 32 --dtype bfloat16 --profile
model uniformerv2_b16 uniformerv2_k400_b16_f8x224 32 --dtype bfloat16 --profile
model uniformerv2_l14 uniformerv2_k400+k710_l14_f8x224 16 --dtype bfloat16
model uniformer_b32 uniformer_b32x4_k400 8 --dtype bfloat16
model uniformer_xxs16 uniformer_xxs16_160_k400 64 --dtype bfloat16
model uniformer_s16_compiled uniformer_s16x4_k400 32 --dtype bfloat16 --compile --rounds 5
model uniformerv2_l14_f16 uniformerv2_k400+k710_l14_f16x224 8 --dtype bfloat16 --rounds 5
part loader 60 python benchmarks/loading.py --cfg exp/uniformer_s16x4_k400/config.yaml --make 24 --json "$out/loader.json"
exit $failed
