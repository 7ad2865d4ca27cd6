"""Configuration files and scripts in the form of the two official repositories.

All configuration files of a repository are one text with a few other values, and hold SOLVER.COSINE_AFTER_WARMUP twice.
All scripts give `--cfg` first and then KEY VALUE in one order. Both follow from the effective settings in
tests/golden/recipes.json.gz: the file has the values of BASE, and the script those of a run.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import run_net as program
import submit
import torch
import yaml
from make_demo_data import CLASS_NAMES, write_video

from slowfast.config import load_config
from slowfast.config.keys import DEFAULT_VALUES, KEYS, leaves
from slowfast.models.build import build_model
from slowfast.optim.build import build_optimizer
from slowfast.run.checkpoint import list_checkpoints
from slowfast.utils.logging import read_metrics
from slowfast.weights.tensors import load_tensors

ROOT = Path(__file__).parents[2]
OFFICIAL = json.loads(gzip.decompress((ROOT / "tests/golden/recipes.json.gz").read_bytes()))["experiments"]
SCRIPTS = [(name, script) for name, entry in OFFICIAL.items() for script in ("train", "test") if script in entry]
SUBMITTED = ("exp/uniformer_b32x4_k600", "train")

# Keys of a configuration file in the official order; those of V1 alone, of V2 alone, and of both.
V1_NETWORK = "EMBED_DIM DEPTH HEAD_DIM MLP_RATIO DROPOUT_RATE ATTENTION_DROPOUT_RATE DROP_DEPTH_RATE HEAD_DROPOUT_RATE"
V2_NETWORK = "BACKBONE N_LAYERS N_DIM N_HEAD MLP_FACTOR BACKBONE_DROP_PATH_RATE DROP_PATH_RATE MLP_DROPOUT CLS_DROPOUT"
SECTIONS = {
    "TRAIN": "ENABLE DATASET BATCH_SIZE EVAL_PERIOD CHECKPOINT_PERIOD AUTO_RESUME",
    "DATA": "USE_OFFSET_SAMPLING DECODING_BACKEND NUM_FRAMES SAMPLING_RATE RANDOM_FLIP TRAIN_JITTER_SCALES "
    "TRAIN_CROP_SIZE TEST_CROP_SIZE INPUT_CHANNEL_NUM TRAIN_JITTER_SCALES_RELATIVE TRAIN_JITTER_ASPECT_RELATIVE",
    "UNIFORMER": f"{V1_NETWORK} SPLIT STD INIT_VALUE PRUNE_RATIO TRADE_OFF PRETRAIN_NAME",
    "UNIFORMERV2": f"{V2_NETWORK} RETURN_LIST NO_LMHRA TEMPORAL_DOWNSAMPLE FROZEN PRETRAIN DELETE_SPECIAL_HEAD",
    "AUG": "NUM_SAMPLE ENABLE COLOR_JITTER AA_TYPE INTERPOLATION RE_PROB RE_MODE RE_COUNT RE_SPLIT",
    "MIXUP": "ENABLE ALPHA CUTMIX_ALPHA PROB SWITCH_PROB LABEL_SMOOTH_VALUE",
    "BN": "USE_PRECISE_STATS NUM_BATCHES_PRECISE",
    "SOLVER": "ZERO_WD_1D_PARAM BASE_LR_SCALE_NUM_SHARDS BASE_LR COSINE_AFTER_WARMUP COSINE_END_LR WARMUP_START_LR "
    "WARMUP_EPOCHS LR_POLICY MAX_EPOCH MOMENTUM WEIGHT_DECAY OPTIMIZING_METHOD COSINE_AFTER_WARMUP",
    "MODEL": "NUM_CLASSES ARCH MODEL_NAME LOSS_FUNC DROPOUT_RATE USE_CHECKPOINT CHECKPOINT_NUM",
    "TEST": "ENABLE DATASET BATCH_SIZE NUM_SPATIAL_CROPS",
    "DATA_LOADER": "NUM_WORKERS PIN_MEMORY",
    "TENSORBOARD": "ENABLE",
}
# Keys that are in a file only if their value is not the default, and those whose numbers are whole.
OPTIONAL = {"USE_OFFSET_SAMPLING", "DECODING_BACKEND", "RANDOM_FLIP", "HEAD_DROPOUT_RATE", "STD", "INIT_VALUE",
            "PRUNE_RATIO", "TRADE_OFF", "FROZEN", "USE_CHECKPOINT", "CHECKPOINT_NUM"}  # fmt: skip
WHOLE = {"MLP_RATIO", "DROPOUT_RATE", "ATTENTION_DROPOUT_RATE"}
# Values of the files that scripts change, or that this package does not have.
BOTH = {"AUG.COLOR_JITTER": 0.4, "AUG.RE_SPLIT": False, "MODEL.DROPOUT_RATE": 0.5, "RNG_SEED": 0, "NUM_SHARDS": 1,
        "SOLVER.BASE_LR_SCALE_NUM_SHARDS": True, "TEST.NUM_SPATIAL_CROPS": 1, "TRAIN.ENABLE": True}  # fmt: skip
BASE = {
    "uniformer": BOTH
    | {"TRAIN.BATCH_SIZE": 8, "TRAIN.EVAL_PERIOD": 10, "TRAIN.CHECKPOINT_PERIOD": 10, "TEST.BATCH_SIZE": 64}
    | {"UNIFORMER.DROP_DEPTH_RATE": 0.1, "SOLVER.BASE_LR": 0.0001, "SOLVER.WARMUP_EPOCHS": 30.0}
    | {"SOLVER.MAX_EPOCH": 200, "SOLVER.WEIGHT_DECAY": 0.05, "DATA.TEST_CROP_SIZE": 256},
    "uniformerv2": BOTH
    | {"TRAIN.BATCH_SIZE": 256, "TRAIN.EVAL_PERIOD": 1, "TRAIN.CHECKPOINT_PERIOD": 5, "TEST.BATCH_SIZE": 256}
    | {"SOLVER.BASE_LR": 0.0004, "SOLVER.WARMUP_EPOCHS": 0.0, "SOLVER.MAX_EPOCH": 50},
}
# KEY VALUE of the scripts in their order; those marked ? are there only if the file has another value.
ARGUMENTS = (
    "DATA.PATH_TO_DATA_DIR DATA.PATH_PREFIX ?DATA.LABEL_PATH_TEMPLATE ?DATA.IMAGE_TEMPLATE ?DATA.PATH_LABEL_SEPARATOR "
    "?MODEL.NUM_CLASSES ?DATA_LOADER.NUM_WORKERS TRAIN.EVAL_PERIOD TRAIN.CHECKPOINT_PERIOD TRAIN.BATCH_SIZE "
    "?TRAIN.SAVE_LATEST NUM_GPUS ?NUM_SHARDS ?UNIFORMER.DROP_DEPTH_RATE SOLVER.MAX_EPOCH SOLVER.BASE_LR "
    "?SOLVER.BASE_LR_SCALE_NUM_SHARDS SOLVER.WARMUP_EPOCHS ?SOLVER.WEIGHT_DECAY ?DATA.TEST_CROP_SIZE ?TRAIN.ENABLE "
    "TEST.NUM_ENSEMBLE_VIEWS TEST.NUM_SPATIAL_CROPS ?TEST.TEST_BEST ?TEST.ADD_SOFTMAX ?TEST.BATCH_SIZE "
    "?TEST.CHECKPOINT_FILE_PATH ?DATA.MC ?RNG_SEED"
)


def effective(name: str, script: str) -> dict[str, Any]:
    """Return every key with its value in a run."""
    family = OFFICIAL[name]["train"]["MODEL.ARCH"]
    constant = {key: BASE[family][key] for key in BOTH if key not in DEFAULT_VALUES}
    places = {"DATA.PATH_TO_DATA_DIR": f"./data_list/{OFFICIAL[name]['data_list']}"}
    places["DATA.PATH_PREFIX"] = "your_path_to_data" if family == "uniformer" else "you_data_path"
    values = DEFAULT_VALUES | constant | OFFICIAL[name][script] | places
    if family == "uniformerv2":
        values["TEST.ADD_SOFTMAX"] = True  # their default
    if script == "test":
        values |= {"TRAIN.ENABLE": False, "TEST.CHECKPOINT_FILE_PATH": "your_model_path"}
    return values


def in_file(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values in the configuration file of an experiment; None for those that a script always gives."""
    v2 = values["MODEL.ARCH"] == "uniformerv2"
    base = {**values, "DATA.PATH_LABEL_SEPARATOR": " ", "DATA_LOADER.NUM_WORKERS": 8, **BASE[values["MODEL.ARCH"]]}
    for key in ("DATA.LABEL_PATH_TEMPLATE", "DATA.IMAGE_TEMPLATE", "TEST.TEST_BEST", "TEST.CHECKPOINT_FILE_PATH"):
        base[key] = DEFAULT_VALUES[key]
    if "_k600" in name and not v2:
        base["MODEL.NUM_CLASSES"] = 400
    if "ucf101" in name or "hmdb51" in name:
        base["UNIFORMER.DROP_DEPTH_RATE"] = values["UNIFORMER.DROP_DEPTH_RATE"]
    return base


def text_of(value: Any) -> str:
    """Return a value as the files write it: 1e-4, which YAML reads as a text."""
    if isinstance(value, float) and 0 < value < 1e-3:
        mantissa, exponent = f"{value:e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return repr(value) if isinstance(value, str) and not value.isidentifier() else str(value)


def write_yaml(path: Path, name: str, script: str) -> None:
    """Write the configuration file of an experiment."""
    values = in_file(name, effective(name, script))
    left_out = {"MIXUP", "UNIFORMER"} if values["MODEL.ARCH"] == "uniformerv2" else {"UNIFORMERV2"}
    lines = []
    for section, keys in SECTIONS.items():
        lines += [f"{section}:"] * (section not in left_out)
        for key in keys.split() if section not in left_out else ():
            lines += ["  # PATH_TO_DATA_DIR: path-to-imagenet-dir"] * (key == "TRAIN_JITTER_SCALES_RELATIVE")
            value = values[f"{section}.{key}"]
            if key not in OPTIONAL or value != DEFAULT_VALUES[f"{section}.{key}"]:
                whole = key in WHOLE and isinstance(value, float)
                lines.append(f"  {key}: {text_of(int(value) if whole and value.is_integer() else value)}")
    lines += ["NUM_GPUS: 8", "NUM_SHARDS: 1", "RNG_SEED: 0", "OUTPUT_DIR: ."]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def arguments(name: str, script: str, work_path: str) -> list[str]:
    """Return the arguments of an official script, the tool first."""
    values = effective(name, script)
    before, v2 = in_file(name, values), values["MODEL.ARCH"] == "uniformerv2"
    own = {"TRAIN.SAVE_LATEST": False} if values["TRAIN.CHECKPOINT_PERIOD"] >= 50 else {}
    own |= {"TEST.ADD_SOFTMAX": True, "NUM_SHARDS": values["NUM_SHARDS"]} if v2 else {}
    own |= {} if v2 or own else {"UNIFORMER.DROP_DEPTH_RATE": values["UNIFORMER.DROP_DEPTH_RATE"]}
    own |= {"DATA.TEST_CROP_SIZE": values["DATA.TEST_CROP_SIZE"]} if own and not v2 else {}
    pairs = []
    for item in ARGUMENTS.split():
        key = item.removeprefix("?")
        value = {**values, **own}.get(key)
        if key == item or key in own or value != before.get(key):
            text = text_of(value).strip("'")
            pairs += [key, f"{value:g}." if key == "SOLVER.WARMUP_EPOCHS" and "TRAIN.SAVE_LATEST" in own else text]
    # the two samples with a file for the test
    config = f"{work_path}/{'test' if script == 'test' and not v2 else 'config'}.yaml"
    shards = str(values["NUM_SHARDS"])
    if (name, script) == SUBMITTED:
        options = ["--cfg", config, "--job_dir", f"{work_path}/b32x4_600/", "--num_shards", shards, "--num_gpus", "8"]
        tool = ["tools/submit.py", *options, "--partition", "your_partition", "--name", "b32x4_600"]
    elif v2:
        tool = ["tools/run_net_multi_node.py", "--init_method", "tcp://localhost:10125", "--cfg", config]
        tool += ["--num_shards", shards]
    else:
        tool = ["tools/run_net_cls.py" if name.startswith("exp_light") else "tools/run_net.py", "--cfg", config]
    return [*tool, *pairs, "OUTPUT_DIR", work_path]


def prepare(name: str, script: str, work_path: Path) -> list[str]:
    """Write the configuration file, and return what the script runs."""
    command = arguments(name, script, str(work_path))
    write_yaml(Path(command[command.index("--cfg") + 1]), name, script)
    return command


def expected(name: str, script: str) -> dict[str, Any]:
    """Return the effective settings under the names of this package."""
    values = {key: value for key, value in effective(name, script).items() if key in DEFAULT_VALUES}
    for key in ("TRAIN.DATASET", "TEST.DATASET"):
        values[key] = "anet" if values[key] == "ant" else values[key]
    return {key: KEYS[key].kind.read(value) for key, value in values.items()}


# Verbatim parts of some scripts: the arguments between the tool's options and OUTPUT_DIR.
V1_TEST = (
    "DATA.PATH_TO_DATA_DIR ./data_list/k400 DATA.PATH_PREFIX your_path_to_data DATA.PATH_LABEL_SEPARATOR , "
    "TRAIN.EVAL_PERIOD 5 TRAIN.CHECKPOINT_PERIOD 1 TRAIN.BATCH_SIZE 128 NUM_GPUS 8 UNIFORMER.DROP_DEPTH_RATE 0.1 "
    "SOLVER.MAX_EPOCH 100 SOLVER.BASE_LR 4e-4 SOLVER.WARMUP_EPOCHS 10.0 DATA.TEST_CROP_SIZE 224 "
    "TEST.NUM_ENSEMBLE_VIEWS 4 TEST.NUM_SPATIAL_CROPS 1 TRAIN.ENABLE False TEST.CHECKPOINT_FILE_PATH your_model_path "
    "RNG_SEED 6666"
)
V1_FRAMES = (
    "DATA.PATH_TO_DATA_DIR ./data_list/sthv2 DATA.PATH_PREFIX your_path_to_data DATA.LABEL_PATH_TEMPLATE "
    "somesomev2_rgb_{}_split.txt DATA.IMAGE_TEMPLATE img_{:05d}.jpg DATA.PATH_LABEL_SEPARATOR , TRAIN.EVAL_PERIOD 5 "
    "TRAIN.CHECKPOINT_PERIOD 1 TRAIN.BATCH_SIZE 40 NUM_GPUS 8 UNIFORMER.DROP_DEPTH_RATE 0.4 SOLVER.MAX_EPOCH 50 "
    "SOLVER.BASE_LR 2.5e-4 SOLVER.WARMUP_EPOCHS 5.0 DATA.TEST_CROP_SIZE 224 TEST.NUM_ENSEMBLE_VIEWS 1 "
    "TEST.NUM_SPATIAL_CROPS 1 RNG_SEED 6666"
)
V1_UCF = (
    "DATA.PATH_TO_DATA_DIR ./data_list/ucf101/split1 DATA.PATH_PREFIX your_path_to_data TRAIN.EVAL_PERIOD 1 "
    "TRAIN.CHECKPOINT_PERIOD 50 TRAIN.BATCH_SIZE 128 TRAIN.SAVE_LATEST False NUM_GPUS 8 SOLVER.MAX_EPOCH 25 "
    "SOLVER.BASE_LR 5e-5 SOLVER.BASE_LR_SCALE_NUM_SHARDS False SOLVER.WARMUP_EPOCHS 5. DATA.TEST_CROP_SIZE 224 "
    "TEST.NUM_ENSEMBLE_VIEWS 5 TEST.NUM_SPATIAL_CROPS 3 TEST.TEST_BEST True RNG_SEED 6666"
)
V2_TEST = (
    "DATA.PATH_TO_DATA_DIR ./data_list/k600 DATA.PATH_PREFIX you_data_path DATA.PATH_LABEL_SEPARATOR , "
    "TRAIN.EVAL_PERIOD 1 TRAIN.CHECKPOINT_PERIOD 100 TRAIN.BATCH_SIZE 256 TRAIN.SAVE_LATEST False NUM_GPUS 8 "
    "NUM_SHARDS 1 SOLVER.MAX_EPOCH 55 SOLVER.BASE_LR 1e-5 SOLVER.BASE_LR_SCALE_NUM_SHARDS False "
    "SOLVER.WARMUP_EPOCHS 5. TRAIN.ENABLE False TEST.NUM_ENSEMBLE_VIEWS 4 TEST.NUM_SPATIAL_CROPS 3 TEST.TEST_BEST True "
    "TEST.ADD_SOFTMAX True TEST.BATCH_SIZE 128 TEST.CHECKPOINT_FILE_PATH your_model_path RNG_SEED 6666"
)


@pytest.mark.parametrize(
    ("name", "script", "given"),
    [
        ("exp/uniformer_s8x8_k400", "test", V1_TEST),
        ("exp/uniformer_b16_sthv2_prek400", "train", V1_FRAMES),
        ("exp/uniformer_s16x4_ucf101_prek400", "train", V1_UCF),
        ("exp/k600/k600_b16_f8x224", "test", V2_TEST),
    ],
)
def test_the_made_files_have_the_official_form(name, script, given):
    made = arguments(name, script, "")
    made = made[made.index("DATA.PATH_TO_DATA_DIR") : -2]
    pairs = [list(zip(tokens[::2], tokens[1::2], strict=True)) for tokens in (made, given.split())]
    assert sorted(pairs[0]) == sorted(pairs[1])


def test_there_are_93_scripts():
    assert len(SCRIPTS) == 93 and SUBMITTED in SCRIPTS


@pytest.mark.parametrize(("name", "script"), SCRIPTS, ids=[f"{name}-{script}" for name, script in SCRIPTS])
def test_every_script_resolves_to_its_settings(name, script, tmp_path, monkeypatch, capsys):
    command = prepare(name, script, tmp_path / "work")
    tool, *given = command
    monkeypatch.setattr(
        sys, "argv", ["run_net.py", *(submit.translate(given) if "submit" in tool else given), "--show"]
    )
    with pytest.warns(UserWarning) as caught:
        assert program.main() == 0
    out, messages = capsys.readouterr().out, [str(found.message) for found in caught if found.category is UserWarning]
    shown = leaves(yaml.load(out, getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
    wanted = expected(name, script) | {"OUTPUT_DIR": str(tmp_path / "work")}
    assert {key: (shown[key], value) for key, value in wanted.items() if shown[key] != value} == {}
    (message,) = messages
    assert "SOLVER.COSINE_AFTER_WARMUP" in message and "AUG.RE_SPLIT" in message
    assert ("--slurm" in sys.argv) == ((name, script) == SUBMITTED)


@pytest.mark.parametrize("tool", ["run_net.py", "run_net_multi_node.py", "run_net_cls.py", "submit.py"])
def test_official_names_of_the_tool(tool, tmp_path):
    """Run a script in its own process, with the environment of the scripts, whose path has this package's folder."""
    command = prepare("exp/uniformer_s8x8_k400", "train", tmp_path)[1:]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:./slowfast"}
    shown = subprocess.run(
        [sys.executable, f"tools/{tool}", *command[:2], "--opts", *command[2:], "--show"],
        cwd=ROOT, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert shown.returncode == 0, shown.stderr
    assert yaml.safe_load(shown.stdout)["TRAIN"]["BATCH_SIZE"] == 128


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (("$work_path", ""), ["configuration /config.yaml", "work_path", "OUTPUT_DIR has no value"]),
        (("--num_shards", None), ["--num_shards", "DATA.PATH_TO_DATA_DIR"]),
        (("--cfg", None), ["--cfg"]),
        (("NUM_GPUS", None), ["NUM_GPUS has no value", "NUM_SHARDS follows"]),
        (("TRAIN.BATCH_SIZE", None), ["TRAIN.BATCH_SIZE has no value"]),
    ],
    ids=lambda value: value[0],
)
def test_a_forgotten_value_names_the_option_that_lacks_it(change, named, tmp_path, monkeypatch, run_here):
    """An empty variable leaves an option without a value; no script of UniFormerV2 defines $work_path."""
    monkeypatch.chdir(tmp_path)
    write_yaml(tmp_path / "x" / "config.yaml", "exp/k400/k400_b16_f8x224", "train")
    _, *command = arguments("exp/k400/k400_b16_f8x224", "train", "" if change[0] == "$work_path" else "x")
    if change[1] is None:
        del command[command.index(change[0]) + 1]
    command = [token for token in command if token]
    done = run_here(program, *command, "--show")
    assert done.returncode == 2 and all(part in done.stderr for part in named)
    assert done.stderr.count("has no value") + done.stderr.count("argument --") == 1


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    """Videos with lists as the authors write them for Kinetics: path and label, separated by a comma."""
    folder = tmp_path_factory.mktemp("k400")
    for split, count in (("train", 8), ("val", 4)):
        for i in range(count):
            write_video(folder / f"{split}_{i}.mp4", seed=0, split=split, index=i)
        rows = "".join(f"{split}_{i}.mp4,{i % len(CLASS_NAMES)}\n" for i in range(count))
        (folder / f"{split}.csv").write_text(rows)
    (folder / "test.csv").write_text((folder / "val.csv").read_text())
    return folder


SHORT = (
    "NUM_GPUS 0 TRAIN.BATCH_SIZE 4 TEST.BATCH_SIZE 4 DATA_LOADER.NUM_WORKERS 0 SOLVER.WARMUP_EPOCHS 0 MODEL.NUM_CLASSES"
)
SMALL = {
    "exp/uniformer_s8x8_k400": f"{SHORT} 8 SOLVER.MAX_EPOCH 1 DATA.NUM_FRAMES 4 DATA.TRAIN_CROP_SIZE 32 "
    "DATA.TEST_CROP_SIZE 32 UNIFORMER.DEPTH [1,1,1,1] UNIFORMER.EMBED_DIM [8,16,32,32] UNIFORMER.HEAD_DIM 16 "
    "UNIFORMER.PRETRAIN_NAME None DATA.TRAIN_JITTER_SCALES [36,40]",
    "exp/k400/k400_b16_f8x224": f"{SHORT} 8 SOLVER.MAX_EPOCH 2 DATA.NUM_FRAMES 4 DATA.TRAIN_CROP_SIZE 32 "
    "DATA.TEST_CROP_SIZE 32 UNIFORMERV2.BACKBONE custom UNIFORMERV2.TOWER [32,2,2,16,32] UNIFORMERV2.N_LAYERS 1 "
    "UNIFORMERV2.N_DIM 32 UNIFORMERV2.N_HEAD 2 UNIFORMERV2.RETURN_LIST [1] UNIFORMERV2.MLP_DROPOUT [0.5]",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_an_experiment_trains_validates_and_tests(name, videos, call, tmp_path):
    """Run as `bash run.sh` does, with other folders and sizes; the output goes beside the configuration file.

    UniFormerV2 resumes from the best checkpoint that the official programs saved there after their first epoch.
    """
    command = prepare(name, "train", tmp_path)
    text = (tmp_path / "config.yaml").read_text()
    sizes = [*SMALL[name].split(), "DATA.PATH_TO_DATA_DIR", str(videos), "DATA.PATH_PREFIX", str(videos)]
    if v2 := "uniformerv2" in text:
        with pytest.warns(UserWarning):
            cfg = load_config(str(tmp_path / "config.yaml"), [*command[command.index("--num_shards") + 2 :], *sizes])
        model = build_model(cfg)
        optimizer = build_optimizer(model, cfg)  # its groups are the official ones (test_optim)
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        for group in optimizer.param_groups:
            del group["names"], group["lr_scale"]
        state = {"epoch": 0, "model_state": model.state_dict(), "optimizer_state": optimizer.state_dict()}
        torch.save({**state, "scaler": {}, "cfg": cfg.dump()}, tmp_path / "best.pyth")

    done = call(*command, *sizes, environment={"PYTHONPATH": f"{ROOT}:./slowfast"})
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "config.yaml").read_text() == text  # the file that was given
    records = read_metrics(tmp_path)
    assert [r["step"] for r in records if r["kind"] == "start"] == [2 * v2]
    assert [r["kind"] for r in records if r["kind"] in ("val", "test")] == ["val", "test"]
    (last,) = list_checkpoints(str(tmp_path))
    saved = load_tensors(last)
    assert saved["step"] == 2 + 2 * v2 and saved["optimizer_state"]["state"][0]["step"] == 2 + v2
    assert len((tmp_path / "test" / "predictions.csv").read_text().splitlines()) == 5
    if v2:
        assert re.search(r"optimizer state of \d+ parameters", done.stdout)
        assert json.loads((tmp_path / "test" / "metrics.json").read_text())["checkpoint"]["path"].endswith("best.pyth")
