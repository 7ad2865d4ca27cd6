"""Every official experiment has its folder in exp/, which resolves to the official settings key by key."""

import gzip
import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

import make_model_zoo
import pytest
import torch
import yaml

from slowfast.config import load_config
from slowfast.config.keys import DEFAULT_VALUES, KEYS, leaves
from slowfast.config.official import reason_to_ignore
from slowfast.models import build_model
from slowfast.models.build import input_shape
from slowfast.utils.profiling import count_flops, count_parameters
from slowfast.weights.fetch import released_weights

ROOT = Path(__file__).parents[2]
OFFICIAL = json.loads(gzip.decompress((ROOT / "tests/golden/recipes.json.gz").read_bytes()))["experiments"]

# Where the official files are ambiguous: experiments, key, intended value, reason.
EXCEPTIONS = (
    *(
        (f"exp/{data}/*", key, "anet", "'ant' is no data set, and 'kinetics_sparse' refuses lists of five columns")
        for data in ("anet", "hacs")
        for key in ("TRAIN.DATASET", "TEST.DATASET")
    ),
    ("*", "DATA.DECODING_BACKEND", "pyav", "gives the same frames, bit for bit, in about half of decord's time"),
    ("exp/mit/*", "TRAIN.DATASET", "mit", "left at 'kinetics_sparse', while the test says 'mit'"),
)
TEST_EXCEPTIONS = (
    *EXCEPTIONS,
    (
        *("exp/uniformer_s16_sthv1_prek400", "DATA.TRAIN_JITTER_SCALES", [256, 320]),
        "changed for the test, which does not read it: with three crops the short side is TEST_CROP_SIZE",
    ),
    ("*", "TRAIN.ENABLE", True, "switched off by the script test.sh"),
)

# Where lists, videos and results lie is not part of a recipe.
PLACES = ("OUTPUT_DIR", "DATA.PATH_TO_DATA_DIR", "DATA.PATH_PREFIX")

# Image classification: folder -> parameters and FLOPs of the official network, published GFLOPs, learning rate at 512
# images in a step, drop path. The official large network has more FLOPs than its table says.
IMAGES = {
    "uniformer_small_in1k": (21_545_256, 3.644e9, 3.6, 5e-4, 0.1),
    "uniformer_small_plus_in1k": (24_032_552, 4.213e9, 4.2, 5e-4, 0.1),
    "uniformer_base_in1k": (49_776_552, 8.273e9, 8.3, 4e-4, 0.3),
    "uniformer_base_ls_in1k": (49_796_520, 8.273e9, 8.3, 4e-4, 0.3),
    "uniformer_large_ls_in1k": (100_103_888, None, None, 4e-4, 0.3),
}

# A name in official settings under which nothing was released.
NOT_RELEASED = "k400/k400+k710_uniformerv2_l14_8x336.pyth"


def folder_of(official: str) -> Path:
    """exp/NAME and exp_light/NAME -> exp/NAME; UniFormerV2's exp/DATA/NAME -> exp/uniformerv2_NAME."""
    parts = official.split("/")
    return ROOT / "exp" / (parts[1] if len(parts) == 2 else f"uniformerv2_{parts[2]}")


experiments = pytest.mark.parametrize("official", OFFICIAL)


@pytest.fixture(autouse=True)
def no_data_root(monkeypatch):
    monkeypatch.delenv("DATA_ROOT", raising=False)


@cache
def experiment_of(official: str) -> make_model_zoo.Experiment:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing obsolete, nothing misspelt
        experiment = make_model_zoo.read_experiment(folder_of(official))
    assert experiment is not None
    return experiment


@cache
def config_of_the_test(official: str):
    path = folder_of(official) / "test.yaml"
    return load_config(path) if path.is_file() else experiment_of(official).cfg


def meant(official: str, settings: dict, exceptions: tuple) -> dict:
    """Every key with the value the official settings mean; exceptions are about keys they set."""
    values = dict(DEFAULT_VALUES)
    for key, value in settings.items():
        if key not in DEFAULT_VALUES:
            assert reason_to_ignore(key), key
            continue
        values[key] = value if value == "ant" else KEYS[key].kind.read(value)
        if key == "UNIFORMER.MLP_RATIO" and isinstance(value, list) and len(set(value)) == 1:
            values[key] = float(value[0])  # one number and four equal ones are the same network
    for pattern, key, value, reason in exceptions:
        if key in settings and fnmatchcase(official, pattern):
            assert reason and values[key] != value, f"{official} needs no exception for {key}"
            values[key] = value
    return values


def assert_equal(cfg, wanted: dict) -> None:
    found = leaves(cfg)
    different = {key: (found[key], value) for key, value in wanted.items() if found[key] != value}
    assert not {key: pair for key, pair in different.items() if key not in PLACES}


def test_one_folder_an_experiment():
    folders = [folder_of(official) for official in OFFICIAL]
    assert len(set(folders)) == len(OFFICIAL) == 88
    assert all(path.is_dir() for path in folders)


@experiments
def test_settings_are_the_official_ones(official):
    assert_equal(experiment_of(official).cfg, meant(official, OFFICIAL[official]["train"], EXCEPTIONS))


@pytest.mark.parametrize("official", [name for name, entry in OFFICIAL.items() if "test" in entry])
def test_settings_of_the_test_are_the_official_ones(official):
    assert_equal(config_of_the_test(official), meant(official, OFFICIAL[official]["test"], TEST_EXCEPTIONS))


@experiments
def test_a_test_takes_the_views_of_the_reported_accuracy(official):
    train, test = leaves(experiment_of(official).cfg), leaves(config_of_the_test(official))
    assert {key for key in train if train[key] != test[key]} <= {"TEST.NUM_ENSEMBLE_VIEWS", "TEST.NUM_SPATIAL_CROPS"}
    if frames := OFFICIAL[official].get("frames"):
        num_frames, crops, clips = map(int, frames.split("x"))
        assert (test["DATA.NUM_FRAMES"], test["TEST.NUM_SPATIAL_CROPS"]) == (num_frames, crops)
        assert test["TEST.NUM_ENSEMBLE_VIEWS"] == clips
        assert experiment_of(official).views == (clips, crops)


@experiments
def test_headers_and_places_are_complete(official):
    experiment, entry, folder = experiment_of(official), OFFICIAL[official], folder_of(official)
    cfg, name = experiment.cfg, folder.name
    assert experiment.command == f"DATA_ROOT=/data bash exp/{name}/run.sh"
    assert (experiment.gpus, experiment.nodes) == (cfg.NUM_GPUS * cfg.NUM_SHARDS, cfg.NUM_SHARDS)
    assert experiment.top1 == entry.get("top1")
    assert experiment.weights == Path(entry.get("checkpoint", name)).stem
    start = cfg.UNIFORMER.PRETRAIN_NAME or cfg.UNIFORMERV2.PRETRAIN
    assert {experiment.weights, start} <= {*released_weights(), NOT_RELEASED, ""}
    assert f"output/{name}" == cfg.OUTPUT_DIR
    assert f"${{DATA_ROOT}}/{entry['data_list']}" == cfg.DATA.PATH_TO_DATA_DIR
    assert f"{cfg.DATA.PATH_TO_DATA_DIR}/".startswith(f"{cfg.DATA.PATH_PREFIX}/")
    assert len((folder / "config.yaml").read_text().splitlines()) <= 40


def test_every_base_is_used():
    def bases(path: Path) -> set[Path]:
        named = yaml.safe_load(path.read_text()).get("_BASE_", [])
        found = {(path.parent / base).resolve() for base in ([named] if isinstance(named, str) else named)}
        return found.union(*map(bases, found))

    used = set().union(*(bases(path) for path in (ROOT / "exp").glob("*/*.yaml")))
    assert set((ROOT / "configs").rglob("*.yaml")) <= used


@pytest.mark.parametrize("name", ["demo", "demo_v2", "demo_image"])
def test_a_copied_demo_runs_its_own_configuration(name, tmp_path):
    for source in (*(ROOT / "exp").glob("*.sh"), *(ROOT / "exp" / name).iterdir()):
        folder = tmp_path / "exp" / ("mine" if source.parent.name == name else "")
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, folder)
    (tmp_path / "python").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "python").chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "EXPERIMENT": "other"}
    command = ["bash", str(tmp_path / "exp" / "mine" / "run.sh"), "LOG_PERIOD", "1"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    trained = [line for line in done.stdout.splitlines() if "run_net" in line]
    assert trained and all("--cfg exp/mine/config.yaml" in line and "LOG_PERIOD 1" in line for line in trained)


@pytest.mark.parametrize("script", ["run.sh", "test.sh"])
def test_scripts_are_the_same_everywhere(script):
    folders = [*map(folder_of, OFFICIAL), *(ROOT / "exp" / name for name in IMAGES)]
    assert len({(folder / script).read_bytes() for folder in folders}) == 1


@pytest.mark.parametrize("name", IMAGES)
def test_image_recipes_have_the_official_settings(name):
    folder = ROOT / "exp" / name
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        experiment = make_model_zoo.read_experiment(folder)
    assert experiment is not None
    cfg = experiment.cfg
    parameters, flops, published, lr, drop_path = IMAGES[name]
    assert experiment.command == f"DATA_ROOT=/data bash exp/{name}/run.sh"
    assert (experiment.gpus, experiment.nodes, experiment.views) == (cfg.NUM_GPUS, 1, (1, 1))
    assert experiment.weights.startswith(name)
    source = released_weights()[experiment.weights]["source"]
    assert f", {experiment.top1}, " in source or f", {experiment.top1} (" in source
    assert f"output/{name}" == cfg.OUTPUT_DIR and cfg.DATA.PATH_TO_DATA_DIR == "${DATA_ROOT}/imagenet"
    text = (folder / "config.yaml").read_text()
    assert len(text.splitlines()) <= 40
    assert ("NOT implemented" in text) == (name in ("uniformer_small_plus_in1k", "uniformer_large_ls_in1k"))

    # as many images as the authors' 300 epochs of 1,281,167, in steps as large within 1 %; the rate follows the step
    assert cfg.AUG.NUM_SAMPLE * cfg.SOLVER.MAX_EPOCH == 300
    assert pytest.approx(5, abs=1e-3) == cfg.AUG.NUM_SAMPLE * cfg.SOLVER.WARMUP_EPOCHS
    images = cfg.TRAIN.BATCH_SIZE * cfg.AUG.NUM_SAMPLE
    assert images == pytest.approx(8 * 128, rel=0.01) and cfg.TRAIN.BATCH_SIZE % cfg.NUM_GPUS == 0
    assert pytest.approx(lr * images / 512, rel=1e-9) == cfg.SOLVER.BASE_LR
    assert drop_path == cfg.UNIFORMER.DROP_DEPTH_RATE
    stated = {
        "TRAIN.DATASET": "imagenet", "TEST.DATASET": "imagenet",
        "DATA.TRAIN_CROP_SIZE": 224, "DATA.TEST_CROP_SIZE": 224,
        "DATA.TRAIN_JITTER_SCALES_RELATIVE": [0.08, 1.0], "DATA.TRAIN_JITTER_ASPECT_RELATIVE": [0.75, 1.3333],
        "DATA.RANDOM_FLIP": True, "DATA.MEAN": [0.485, 0.456, 0.406], "DATA.STD": [0.229, 0.224, 0.225],
        "AUG.ENABLE": True, "AUG.AA_TYPE": "rand-m9-mstd0.5-inc1", "AUG.INTERPOLATION": "bicubic", "AUG.RE_PROB": 0.25,
        "AUG.RE_MODE": "pixel", "AUG.RE_COUNT": 1, "MIXUP.ENABLE": True, "MIXUP.ALPHA": 0.8, "MIXUP.CUTMIX_ALPHA": 1.0,
        "MIXUP.PROB": 1.0, "MIXUP.SWITCH_PROB": 0.5, "MIXUP.LABEL_SMOOTH_VALUE": 0.1, "MODEL.NUM_CLASSES": 1000,
        "MODEL.LOSS_FUNC": "soft_cross_entropy", "EMA.ENABLE": True, "EMA.DECAY": 0.99996,
        "SOLVER.OPTIMIZING_METHOD": "adamw", "SOLVER.WEIGHT_DECAY": 0.05, "SOLVER.ZERO_WD_1D_PARAM": True,
        "SOLVER.WARMUP_START_LR": 1e-6, "SOLVER.COSINE_END_LR": 1e-5, "SOLVER.COSINE_AFTER_WARMUP": False,
        "SOLVER.CLIP_GRADIENT": 0, "TEST.NUM_ENSEMBLE_VIEWS": 1, "TEST.NUM_SPATIAL_CROPS": 1,
    }  # fmt: skip
    found = leaves(cfg)
    assert {key: found[key] for key in stated} == stated

    with torch.device("meta"):
        model = build_model(cfg).eval()
        assert model(torch.zeros(1, *input_shape(cfg))).shape == (1, 1000)
    assert count_parameters(model) == parameters
    if flops:
        counted = count_flops(model, 1, *input_shape(cfg))
        assert counted == pytest.approx(flops, rel=1e-3) and counted == pytest.approx(1e9 * published, rel=0.02)


def run(script: Path, *overrides: str, **variables: str) -> subprocess.CompletedProcess:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {key: value for key, value in os.environ.items() if key != "DATA_ROOT"}
    environment.update(variables, PATH=path, PYTHONPATH=str(ROOT))
    command = ["bash", str(script), *overrides]
    return subprocess.run(command, env=environment, cwd=script.parent, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("script", ["run.sh", "test.sh"])
@pytest.mark.parametrize("variables", [{}, {"DATA_ROOT": ""}])
def test_scripts_require_data_root(script, variables):
    result = run(ROOT / "exp/uniformer_s16x4_k400" / script, **variables)
    assert result.returncode == 2 and not result.stdout
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: DATA_ROOT ")


def test_scripts_read_lists_below_data_root(tmp_path):
    data = tmp_path / "my data"
    data.mkdir()
    overrides = ("NUM_GPUS", "0", "OUTPUT_DIR", str(tmp_path / "output"))
    result = run(ROOT / "exp/uniformer_s16x4_ucf101_prek400/test.sh", *overrides, DATA_ROOT=str(data))
    assert result.returncode == 2
    assert f"{data}/ucf101/split1/test.csv" in result.stderr


def test_scripts_report_a_fault_once(tmp_path):
    result = run(ROOT / "exp/uniformer_s16x4_k400/run.sh", "TEST.NUM_VIEWS", "4", DATA_ROOT=str(tmp_path))
    assert result.returncode == 2
    assert re.findall(r"unknown key (\S+)", result.stderr) == ["TEST.NUM_VIEWS"]


def network_of(cfg) -> str:
    """Describe the network, without its training and start."""
    chosen = {key: value for key, value in leaves(cfg).items() if key.startswith(("MODEL.", "UNIFORMER"))}
    for key in list(chosen):
        if re.search(r"PRETRAIN|RATE$|DROPOUT|LOSS_FUNC|DELETE_SPECIAL_HEAD|CHECKPOINT", key):
            del chosen[key]
    return repr((chosen, cfg.DATA.NUM_FRAMES, cfg.DATA.TEST_CROP_SIZE))


_parameters: dict[str, int] = {}


@experiments
def test_models_have_the_official_parameters(official):
    cfg = experiment_of(official).cfg
    network = network_of(cfg)
    if network not in _parameters:
        with torch.device("meta"):
            _parameters[network] = count_parameters(build_model(cfg))
    assert _parameters[network] == OFFICIAL[official].get("parameters", _parameters[network])


def test_a_malformed_header_is_named(tmp_path):
    text = (ROOT / "exp/uniformer_s16x4_k400/config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(text.replace("80.8 %", "80.8%"))
    with pytest.raises(ValueError, match=r"config\.yaml: .*Command, Hardware, Accuracy and Weights"):
        make_model_zoo.read_experiment(tmp_path)


def test_a_row_of_the_model_zoo():
    experiment = experiment_of("exp/k400/k400+k710_b16_f8x224")
    assert make_model_zoo.row(experiment, 114_552_208, 148_280_160_000).split(" | ") == [
        "| [uniformerv2_k400+k710_b16_f8x224](exp/uniformerv2_k400+k710_b16_f8x224/config.yaml)",
        *("k710/k710_uniformerv2_b16_8x224.pyth", "8 x 224", "114.6", "148.3", "4 x 3", "85.6"),
        "[k400_k710_uniformerv2_b16_8x224](https://pjlab-gvm-data.oss-cn-shanghai.aliyuncs.com/uniformerv2/k400/"
        "k400_k710_uniformerv2_b16_8x224.pyth) |",
    ]
    with pytest.raises(ValueError, match="nothing in slowfast/weights"):
        make_model_zoo.row(replace(experiment, weights="nothing"), 0, 0)


def test_the_model_zoo_has_every_experiment():
    def but_costs(line: str) -> list[str]:
        cells = line.split(" | ")
        return cells[:3] + cells[5:]  # parameters and FLOPs of the largest networks take minutes

    lines = (ROOT / "MODEL_ZOO.md").read_text(encoding="utf-8").splitlines()
    found = sorted(but_costs(line) for line in lines if line.startswith("| ["))
    expected = [but_costs(make_model_zoo.row(experiment, 0, 0)) for experiment in make_model_zoo.read_experiments()]
    assert found == sorted(expected), "run python tools/make_model_zoo.py"
