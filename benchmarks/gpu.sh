#!/usr/bin/env bash
# Run all checks and benchmarks that need a GPU, unattended, in under 9 minutes, and leave JSON and logs in a folder:
#     bash benchmarks/gpu.sh OUT [--device cpu] [--quick] [--no-checks] [--seconds N]
# A failed part does not stop the others; the exit code is 1 if any failed. Packages must be installed, or in a folder on
# PYTHONPATH; no network is used. --seconds N limits the time of all parts together (default: 525); a part for which less
# than 10 seconds are left does not run and counts as failed. --no-checks leaves out the parts that are not timed.
# --quick runs every kind of part on small networks; with --device cpu it tests this file.
set -u
cd "$(dirname "$0")/.."
out=$(realpath -m "${1:?folder for the results}")
shift
device=cuda quick='' checks=1 deadline=525
while [ $# -gt 0 ]; do
    case $1 in
    --device) device=$2 && shift ;;
    --quick) quick=1 ;;
    --no-checks) checks='' ;;
    --seconds) deadline=$2 && shift ;;
    *) echo "unknown option $1" >&2 && exit 2 ;;
    esac
    shift
done
mkdir -p "$out"
rm -rf "$out"/*.json "$out"/*.log "$out"/summary.txt "$out"/parts "$out"/demo
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
py=${PYTHON:-python3}
gpus=$([ "$device" = cpu ] && echo 0 || echo 1)

part() { # NAME SECONDS COMMAND...: run a part within its time limit and the deadline
    local name=$1 limit=$2 start=$SECONDS code=0
    shift 2
    [ "$limit" -le $((deadline - start)) ] || limit=$((deadline - start))
    if [ "$limit" -lt 10 ]; then
        code=124
        echo "no time is left" >"$out/$name.log"
    else
        timeout -k 5 "$limit" "$@" >"$out/$name.log" 2>&1 </dev/null || code=$?
    fi
    printf '%-24s exit code %3d, %4d s\n' "$name" $code $((SECONDS - start)) | tee -a "$out/summary.txt"
    tail -n 8 "$out/$name.log" | sed 's/^/    /' >>"$out/summary.txt"
    printf '{"part": "%s", "exit_code": %d, "seconds": %d}\n' "$name" $code $((SECONDS - start)) >>"$out/parts"
}

model() { # NAME NETWORK BATCH [OPTION...]
    local name=$1 network=$2 batch=$3
    shift 3
    part "$name" 120 "$py" benchmarks/model.py "$network" --batch "$batch" --device $device "$@" --json "$out/$name.json"
}

train_demo() { # VIDEOS ACCURACY [KEY VALUE...]: train on synthetic videos, and require a top-1 accuracy in percent
    local videos=$1 accuracy=$2
    shift 2
    "$py" tools/make_demo_data.py --out "$out/data" --train "$videos" --test $((videos / 4)) &&
        "$py" tools/run_net.py --cfg exp/demo/config.yaml NUM_GPUS $gpus OUTPUT_DIR "$out/demo" \
            DATA.PATH_TO_DATA_DIR "$out/data" DATA.PATH_PREFIX "$out/data" "$@" &&
        "$py" -c "
import json, shutil, sys
shutil.copy('$out/demo/test/metrics.json', '$out/demo.json')
sys.exit(json.load(open('$out/demo.json'))['metrics']['top1'] < $accuracy)"
}

probe() {
    "$py" -c "
import json, torch
from slowfast.engine.setup import _bfloat16_convolution_is_right
right = _bfloat16_convolution_is_right(torch.device('$device'))
record = {'right': right, 'torch': torch.__version__, 'cudnn': torch.backends.cudnn.version()}
json.dump(record, open('$out/probe.json', 'w'))
print(record)"
}
export -f train_demo probe
export out device py gpus

mapfile -t tests < <(grep -rl --include='test_*.py' 'mark\.gpu' tests)
if [ -n "$quick" ]; then
    tiny=(MODEL.NUM_CLASSES 8 DATA.NUM_FRAMES 4 DATA.TRAIN_CROP_SIZE 32 DATA.TEST_CROP_SIZE 32)
    tiny+=(UNIFORMER.DEPTH '[1, 1, 1, 1]' UNIFORMER.EMBED_DIM '[8, 16, 32, 32]' UNIFORMER.HEAD_DIM 16)
    part probe 60 bash -c probe
    part tests 60 "$py" -m pytest -q -m gpu -p no:cacheprovider tests/datasets/test_views.py
    part demo 90 bash -c 'train_demo "$@"' - 16 0 SOLVER.MAX_EPOCH 1 SOLVER.WARMUP_EPOCHS 0.0 TRAIN.BATCH_SIZE 8 \
        DATA_LOADER.NUM_WORKERS 0 "${tiny[@]}"
    model uniformer_s16 uniformer_s16x4_k400 2 --rounds 1 DATA.NUM_FRAMES 4 DATA.TEST_CROP_SIZE 64 \
        UNIFORMER.DEPTH '[1, 1, 1, 1]' UNIFORMER.EMBED_DIM '[32, 32, 64, 64]' UNIFORMER.HEAD_DIM 32
    part training 90 "$py" benchmarks/training.py uniformer_s16x4_k400 --device $device --batch 2 --steps 2 --rounds 1 \
        --workers 1 --make 1 --seconds 1 "${tiny[@]}" --json "$out/training.json"
else
    nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader >"$out/card.txt" 2>&1
    if [ -n "$checks" ]; then # nothing is timed yet, so these run together
        part probe 60 bash -c probe &
        part tests 120 "$py" -m pytest -q -m gpu -p no:cacheprovider "${tests[@]}" &
        part demo 120 bash -c 'train_demo "$@"' - 1000 99 TRAIN.MIXED_PRECISION True DATA_LOADER.NUM_WORKERS 8 &
        wait
    fi
    model uniformer_s16 uniformer_s16x4_k400 32 --dtype bfloat16 --compile --rounds 5 --profile
    model uniformerv2_l14 uniformerv2_k400+k710_l14_f8x224 16 --dtype bfloat16 --compile --rounds 5 --profile
    part training 90 "$py" benchmarks/training.py uniformer_s16x4_k400 --device $device --batch 16 \
        --steps 12 --rounds 2 --make 16 --json "$out/training.json" TRAIN.MIXED_PRECISION True
    model uniformerv2_b16 uniformerv2_k400_b16_f8x224 32 --dtype bfloat16 --compile --rounds 5 --profile
    part training_compiled 90 "$py" benchmarks/training.py uniformer_s16x4_k400 --device $device --batch 16 \
        --steps 12 --rounds 2 --make 16 --json "$out/training_compiled.json" TRAIN.MIXED_PRECISION True MODEL.COMPILE True
    model uniformer_xxs16 uniformer_xxs16_160_k400 64 --dtype bfloat16 --compile --rounds 5
    model uniformer_b32 uniformer_b32x4_k400 8 --dtype bfloat16 --compile --rounds 5
    model uniformerv2_l14_f16 uniformerv2_k400+k710_l14_f16x224 8 --dtype bfloat16 --compile --rounds 3
fi
"$py" - "$out" <<'END'
import json, pathlib, platform, sys
out = pathlib.Path(sys.argv[1])
parts = [json.loads(line) for line in (out / "parts").read_text().splitlines()]
card = (out / "card.txt").read_text().strip() if (out / "card.txt").is_file() else ""
record = {"card": card, "python": platform.python_version(), "parts": parts}
(out / "summary.json").write_text(json.dumps(record, indent=2) + "\n")
(out / "parts").unlink()
sys.exit(any(part["exit_code"] for part in parts))
END
