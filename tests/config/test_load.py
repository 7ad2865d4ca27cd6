"""Loading: precedence, bases, origins, faults, and the way back to text."""

import math
import os
import pickle
import re
import time
import warnings

import pytest

from slowfast.config import (
    ConfigError,
    changed_keys,
    check_hardware,
    check_variables,
    dump_config,
    format_config,
    get_cfg,
    load_config,
)


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write files in an empty current folder."""
    monkeypatch.chdir(tmp_path)

    def write(name: str, text: str) -> str:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
        return name

    return write


def faults(path=None, overrides=()) -> list[str]:
    with pytest.raises(ConfigError) as error:
        load_config(path, overrides)
    assert isinstance(error.value, ValueError)
    assert all(fault in str(error.value) for fault in error.value.faults)
    return error.value.faults


def fault(path=None, overrides=()) -> str:
    (only,) = faults(path, overrides)
    return only


def test_precedence_and_origins(write):
    write("parts/a.yaml", "TRAIN: {BATCH_SIZE: 8, EVAL_PERIOD: 2}\nTEST:\n  BATCH_SIZE: 1\nRNG_SEED: 3\n")
    write("parts/b.yaml", "_BASE_: a.yaml\nTEST:\n  BATCH_SIZE: 2\n")
    write("parts/c.yaml", "LOG_PERIOD: 5\nTEST:\n  BATCH_SIZE: 3\n")
    write("exp/x.yaml", "TRAIN:\n  BATCH_SIZE: 16\n_BASE_:\n- ../parts/b.yaml\n- ../parts/c.yaml\n")
    cfg = load_config("exp/x.yaml", ["RNG_SEED", "4", "SOLVER.BASE_LR=1e-3"])
    assert (cfg.TRAIN.BATCH_SIZE, cfg.TRAIN.EVAL_PERIOD, cfg.TEST.BATCH_SIZE) == (16, 2, 3)
    assert (cfg.RNG_SEED, cfg.LOG_PERIOD, cfg.SOLVER.BASE_LR, cfg.NUM_GPUS) == (4, 5, 1e-3, 1)
    assert cfg.sources == {
        "TRAIN.BATCH_SIZE": "exp/x.yaml:2",
        "TRAIN.EVAL_PERIOD": "parts/a.yaml:1",
        "TEST.BATCH_SIZE": "parts/c.yaml:3",
        "LOG_PERIOD": "parts/c.yaml:1",
        "RNG_SEED": "command line",
        "SOLVER.BASE_LR": "command line",
    }
    assert load_config("exp/x.yaml").RNG_SEED == 3


def test_plain_merges_follow_bases_and_accept_official_forms(write):
    write("base.yaml", "SOLVER: {BASE_LR: 1e-4, MAX_EPOCH: 10.0}\n")
    path = write("x.yaml", "_BASE_: base.yaml\nUNIFORMER.MLP_RATIO: [4.0, 4.0, 4.0, 4.0]\nMODEL: {CHECKPOINT_NUM: 1}\n")
    cfg = get_cfg()
    cfg.merge_from_file(path)
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_EPOCH, cfg.UNIFORMER.MLP_RATIO) == (1e-4, 10, [4.0] * 4)
    assert cfg.MODEL.CHECKPOINT_NUM == [1] and isinstance(cfg.SOLVER.MAX_EPOCH, int)
    cfg.merge_from_list(["UNIFORMER.MLP_RATIO", "3", "DATA.MEAN", "(0.5, 0.5, 0.5)", "TEST.ADD_SOFTMAX", "None"])
    cfg.merge_from_list(["TRAIN.ENABLE", False, "TEST.ENABLE", "true", "OUTPUT_DIR", "2024"])
    assert (cfg.UNIFORMER.MLP_RATIO, cfg.DATA.MEAN, cfg.TEST.ADD_SOFTMAX) == (3, [0.5] * 3, None)
    assert (cfg.TRAIN.ENABLE, cfg.TEST.ENABLE, cfg.OUTPUT_DIR) == (False, True, "2024")


@pytest.mark.parametrize(
    ("text", "value"), [("1e-6", 1e-6), ("'1e-4'", 1e-4), ("3", 3.0), ("2.5E-5", 2.5e-5), ("1.e-3", 1e-3)]
)
def test_numbers_that_yaml_reads_as_text_are_numbers(write, text, value):
    cfg = load_config(write("x.yaml", f"SOLVER: {{BASE_LR: {text}}}\n"))
    assert value == cfg.SOLVER.BASE_LR and isinstance(cfg.SOLVER.BASE_LR, float)


def test_all_faults_at_once_with_lines_and_cures(write):
    write("base.yaml", "MODEL:\n  NUM_CLASES: 7\n")
    text = """\
_BASE_: [base.yaml, gone.yaml]
TRAIN:
  BATCH_SIZE: many
  NUM_CLASSES: 4
TEST: 5
AUG:
  RE_PROB: 0.6
  RE_PROB: 0.5
SOLVER:
  OPTIMIZING_METHOD: lamb
  STEPS: [0, x]
UNIFORMER: {DEPTH: [1, 2]}
MIXUP.ENABLE: True
"""
    found = faults(write("x.yaml", text), ["LOG_PERIOD", "0", "trian.enable=0", "OUTPUT_DIR", "a", "RNG_SEED"])
    expected = [
        ("x.yaml:1: ", "gone.yaml"),
        ("x.yaml:8: ", "AUG.RE_PROB", "line 7"),
        ("command line: RNG_SEED",),
        ("base.yaml:2: ", "MODEL.NUM_CLASES", "MODEL.NUM_CLASSES"),
        ("x.yaml:3: TRAIN.BATCH_SIZE = 'many'", "integer"),
        ("x.yaml:4: ", "TRAIN.NUM_CLASSES", "MODEL.NUM_CLASSES"),
        ("x.yaml:5: TEST ",),
        ("x.yaml:11: SOLVER.STEPS = [0, 'x']", "number"),
        ("command line: ", "trian.enable", "TRAIN.ENABLE"),
        ("x.yaml:10: SOLVER.OPTIMIZING_METHOD = 'lamb'", "sgd, adam, adamw, timm"),
        ("command line: LOG_PERIOD = 0", ">= 1"),
        ("x.yaml:12: UNIFORMER.DEPTH = [1, 2]", "4"),
        ("x.yaml:13: MIXUP.ENABLE = True, MODEL.LOSS_FUNC = cross_entropy", "soft_cross_entropy"),
    ]
    for parts in expected:
        matches = [f for f in found if f.startswith(parts[0]) and all(part in f for part in parts)]
        assert len(matches) == 1, parts
    assert len(found) == len(expected)


def test_a_value_that_is_replaced_need_not_be_usable(write):
    path = write("a.yaml", "TRAIN:\n  DATASET: hvu\nDATA:\n  INPUT_CHANNEL_NUM: [3, 3]\nMODEL:\n  NUM_CLASSES: 7\n")
    cfg = load_config(path, ["TRAIN.DATASET", "sth", "DATA.INPUT_CHANNEL_NUM", "3"])
    assert (cfg.TRAIN.DATASET, cfg.DATA.INPUT_CHANNEL_NUM) == ("sth", [3])
    assert cfg.sources["TRAIN.DATASET"] == "command line"
    assert [found.split(" = ")[0] for found in faults(path, ["TRAIN.DATASET", "sth", "MODEL.NUM_CLASSES", "x"])] == [
        "a.yaml:4: DATA.INPUT_CHANNEL_NUM",
        "command line: MODEL.NUM_CLASSES",
    ]
    assert "DATA.STD" in fault(None, ["DATA.MEAN", "x", "DATA.MEAN", "0.5"])  # rules see the value that is used


def test_choices_may_be_capitalized():
    assert load_config(None, ["TRAIN.DATASET", "Kinetics_sparse"]).TRAIN.DATASET == "kinetics_sparse"
    with pytest.warns(UserWarning, match="read as pyav"):
        assert load_config(None, ["DATA.DECODING_BACKEND", "Torchvision"]).DATA.DECODING_BACKEND == "pyav"


def test_files_that_cannot_be_read_are_named(write, tmp_path):
    assert "x.yaml cannot be read" in fault("x.yaml") and str(tmp_path) in fault("x.yaml")
    assert "/proc/self/mem cannot be read" in fault("/proc/self/mem")
    os.mkdir("folder")
    assert "folder cannot be read (Is a directory)" in fault("folder")
    (tmp_path / "folder/config.yaml").touch()
    assert fault("folder").endswith("name folder/config.yaml")
    assert "folder/config.yaml" not in fault(write("a.yaml", "_BASE_: folder\n"))  # it would be relative to a.yaml
    assert fault(write("a.yaml", "TRAIN:\n  ENABLE: [1\nTEST:\n")).startswith("a.yaml:3: YAML: ")
    assert fault(write("a.yaml", "TRAIN:\n\tENABLE: True\n")).startswith("a.yaml:2: YAML: ")
    assert fault(write("a.yaml", "OUTPUT_DIR: !!python/name:os.system\n")).startswith("a.yaml:1: YAML: ")
    assert fault(write("a.yaml", "just words\n")).startswith("a.yaml:1: ")
    assert fault(write("a.yaml", "RNG_SEED: 2024-99-99\n")).startswith("a.yaml:1: YAML: ")
    assert fault(write("a.yaml", "RNG_SEED: !!int ''\n")).startswith("a.yaml:1: YAML: ")
    assert fault(write("a.yaml", "DATA:\n  STD:\n  - 0.2\n  - x\n")).startswith("a.yaml:2: DATA.STD = [0.2, 'x']")
    assert fault(write("a.yaml", "RNG_SEED: 1\n_BASE_: {a: b.yaml}\n")).startswith("a.yaml:2: ")
    (tmp_path / "a.yaml").write_bytes(b"OUTPUT_DIR: \xff\n")
    assert "UTF-8" in fault("a.yaml")
    assert load_config(write("a.yaml", "")) == load_config(write("b.yaml", "TRAIN:\n# ENABLE: False\n")) == get_cfg()


def test_a_repeated_key_is_a_fault_only_if_its_values_differ(write):
    """All official files contain SOLVER.COSINE_AFTER_WARMUP twice."""
    text = "SOLVER:\n  COSINE_AFTER_WARMUP: True\n  BASE_LR: 1e-4\n  BASE_LR: 0.0001\n  COSINE_AFTER_WARMUP: True\n"
    with pytest.warns(UserWarning) as caught:
        cfg = load_config(write("a.yaml", text))
    (message,) = [str(warning.message) for warning in caught]
    assert all(part in message for part in ("SOLVER.COSINE_AFTER_WARMUP (line 5, ", "SOLVER.BASE_LR (line 4, "))
    assert cfg.SOLVER.COSINE_AFTER_WARMUP and cfg.sources["SOLVER.COSINE_AFTER_WARMUP"] == "a.yaml:2"
    with pytest.warns(UserWarning, match="TRAIN.ENABLE"):
        load_config(write("a.yaml", "TRAIN: {ENABLE: False, ENABLE: False}\n"))

    assert all(part in fault(write("a.yaml", "RNG_SEED: 1\n\nRNG_SEED: 2\n")) for part in ("a.yaml:3", "line 1"))
    assert "TRAIN.ENABLE (line 1, " in fault(write("a.yaml", "TRAIN: {ENABLE: True, ENABLE: False}\n"))
    # a section given twice would lose its first part in other programs
    assert "at line 1" in fault(write("a.yaml", "TRAIN: {ENABLE: True}\nTRAIN: {BATCH_SIZE: 8}\n"))


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (
            "A0: &a0 [1, 1]\n" + "".join(f"A{i}: &a{i} [{', '.join(9 * [f'*a{i - 1}'])}]\n" for i in range(1, 12)),
            "2000",
        ),
        ("A0: &a0 {x: 1}\n" + "".join(f"A{i}: &a{i} {{x: *a{i - 1}, y: *a{i - 1}}}\n" for i in range(1, 30)), "2000"),
        ("TRAIN: &a {B: *a}\n", "2000"),
        ("SOLVER:\n  STEPS: &a [0, *a]\n", "2000"),
        ("SOLVER:\n  STEPS: " + "[" * 60 + "]" * 60 + "\n", "SOLVER.STEPS"),
        ("SOLVER:\n  STEPS: " + "[" * 500 + "]" * 500 + "\n", "recursion"),
        ("".join(f"{'  ' * i}A:\n" for i in range(100)), "unknown key"),
        ("RNG_SEED: " + "9" * 5000 + "\n", "YAML: "),
        ("RNG_SEED: 0x" + "f" * 4000 + "\n", "integer"),
        ("SOLVER: {BASE_LR: 0x" + "f" * 4000 + "}\n", "a number"),
        ("# " + "x" * (1 << 17) + "\n", "bytes"),
        ("A: [" + "1, " * 10000 + "1]\n", "2000"),
    ],
)
def test_a_file_without_end_is_refused_at_once(write, text, part):
    started = time.monotonic()
    with pytest.raises(ConfigError) as error:
        load_config(write("a.yaml", text))
    (message,) = error.value.faults
    assert part in message and message.startswith("a.yaml:") and "\n" not in message and len(message) < 500
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("folder", ["", "None", " "])
def test_an_empty_output_folder_is_refused(folder, write):
    """Without a name, a run would write into the current folder."""
    message = fault(None, ["OUTPUT_DIR", folder])
    assert message.startswith("command line: OUTPUT_DIR = ")
    assert "a.yaml:1: " in fault(write("a.yaml", f"OUTPUT_DIR: {folder}\n"))


def test_the_text_none_is_empty(write):
    """The official default of UNIFORMER.PRETRAIN_NAME is None, which YAML reads as a text."""
    cfg = load_config(
        write("a.yaml", "UNIFORMER: {PRETRAIN_NAME: None}\nAUG: {AA_TYPE: null}\n"), ["DATA.PATH_PREFIX=None"]
    )
    assert (cfg.UNIFORMER.PRETRAIN_NAME, cfg.AUG.AA_TYPE, cfg.DATA.PATH_PREFIX) == ("", "", "")


@pytest.mark.parametrize(("key", "most", "more"), [("RNG_SEED", 2**64 - 1, 2**64), ("DIST_TIMEOUT", 1e6, 1.1e6)])
def test_numbers_that_pytorch_or_the_system_cannot_take_are_refused(key, most, more):
    assert load_config(None, [key, str(most)])[key] == most
    assert fault(None, [key, str(more)]).startswith(f"command line: {key} = ")


def test_a_long_list_of_faults_is_shortened(write):
    with pytest.raises(ConfigError) as error:
        load_config(write("a.yaml", "".join(f"NOTHING_{i}: 1\n" for i in range(100))))
    assert len(error.value.faults) == 100 and str(error.value).count("\n") == 51


def test_a_circle_of_bases_is_named(write):
    write("sub/b.yaml", "RNG_SEED: 2\n_BASE_: ../a.yaml\n")
    message = fault(write("a.yaml", "_BASE_: sub/b.yaml\n"))
    assert message.startswith("sub/b.yaml:2: ") and "a.yaml -> sub/b.yaml -> a.yaml" in message
    write("common.yaml", "RNG_SEED: x\n")
    for name in "pq":
        write(f"{name}.yaml", "_BASE_: common.yaml\n")
    assert "common.yaml:1: RNG_SEED" in fault(write("r.yaml", "_BASE_: [p.yaml, q.yaml]\n"))  # no circle, said once


@pytest.mark.parametrize(
    ("text", "pairs", "unread"),
    [
        ("UNIFORMERV2: {FROZEN: True, N_HEAD: 12}", [], "UNIFORMERV2 (a.yaml:1, 2 keys): MODEL.MODEL_NAME Uniformer "),
        ("MODEL: {MODEL_NAME: Uniformerv2}", ["UNIFORMER.SPLIT=True"], "UNIFORMER (command line): "),
        ("MODEL: {MODEL_NAME: Uniformerv2}\nUNIFORMER: {SPLIT: True}", [], ""),  # perhaps of another network in a base
        ("MODEL: {MODEL_NAME: Mine}", ["UNIFORMERV2.FROZEN=True"], ""),
    ],
)
def test_keys_of_the_other_family_cause_a_warning(text, pairs, unread, write):
    with warnings.catch_warnings(record=True) as caught:
        load_config(write("a.yaml", text), pairs)
    assert [str(found.message).splitlines()[1].startswith(f"  {unread}") for found in caught] == [True] * bool(unread)


def test_obsolete_keys_warn_once_and_do_nothing(write):
    text = "RESNET: {DEPTH: 50, TRANS_FUNC: b}\nAVA:\nDATA:\n  MC: True\nTEST.DATASET: ant\nTRAIN.CHECKPOINT_TYPE: x\n"
    path = write("x.yaml", text)
    with pytest.warns(UserWarning) as caught:
        cfg = load_config(path, ["SOLVER.SPECIAL_LIST", "[]", "DETECTION.ENABLE", "False", "RNG_SEED", "7"])
    (message,) = [str(warning.message) for warning in caught]
    for part in (
        "RESNET (x.yaml:1, 2 keys), AVA (x.yaml:2), DETECTION.ENABLE (command line): ",
        "DATA.MC (x.yaml:4)",
        "read as anet",
        "only PyTorch",
        "BACKBONE_LR_RATIO",
    ):
        assert part in message
    assert "RNG_SEED" not in message
    assert cfg.TEST.DATASET == "anet"
    assert changed_keys(cfg, get_cfg(), ignore=()) == {"TEST.DATASET": ("anet", "kinetics"), "RNG_SEED": (7, 1)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_config(None, ["RNG_SEED", "7"])
        load_config(write("again.yaml", dump_config(cfg)))
    with pytest.warns(UserWarning, match=r"DATA\.MC"):
        get_cfg().merge_from_list(["DATA.MC", "True"])


def test_dump_and_load_are_inverse(write):
    cfg = get_cfg()
    values = {
        "SOLVER.BASE_LR": 1e-6,
        "SOLVER.COSINE_END_LR": "1e-7",
        "SOLVER.CLIP_GRADIENT": None,
        "TEST.ADD_SOFTMAX": True,
        "UNIFORMER.PRUNE_RATIO": ((), (), (1, 0.5), [0.3333333333333333]),
        "UNIFORMER.MLP_RATIO": (4, 4, 4, 3.5),
        "DATA.MEAN": (0.1, 0.2, 0.3),
        "DATA.PATH_LABEL_SEPARATOR": "\t",
        "DATA.PATH_PREFIX": "a folder: with 'quotes' # and é, " + "long/" * 40,
        "OUTPUT_DIR": "1e-4",
        "UNIFORMER.PRETRAIN_NAME": "'null'",
        "DATA.IMAGE_TEMPLATE": "{:05d}.jpg",
        "DATA.PATH_TO_DATA_DIR": "two\nlines",
    }
    cfg.merge_from_list([item for pair in values.items() for item in pair])
    again = load_config(write("x.yaml", dump_config(cfg)))
    assert again == cfg
    assert again.SOLVER.COSINE_END_LR == 1e-7 and again.SOLVER.CLIP_GRADIENT is None
    assert again.UNIFORMER.PRUNE_RATIO == [[], [], [1, 0.5], [0.3333333333333333]]
    assert again.OUTPUT_DIR == "1e-4" and again.UNIFORMER.PRETRAIN_NAME == "null"
    assert len(again.sources) > 100
    assert dump_config(again) == dump_config(cfg)
    assert load_config(write("y.yaml", format_config(cfg))) == cfg
    assert load_config(write("z.yaml", cfg.dump())) == cfg


def test_show_names_the_origin_of_what_is_not_default(write):
    path = write("x.yaml", "TRAIN:\n  BATCH_SIZE: 8\n  EVAL_PERIOD: 10\n")
    cfg = load_config(path, ["NUM_GPUS", "0"])
    lines = format_config(cfg).splitlines()
    assert [" ".join(line.split()) for line in lines if "#" in line] == [
        "NUM_GPUS: 0 # command line",
        "BATCH_SIZE: 8 # x.yaml:2",
    ]
    assert len(lines) > 100
    cfg = cfg.clone()
    cfg.defrost()
    cfg.RNG_SEED = 5
    assert "RNG_SEED: 5 " in format_config(cfg) and "set by code" in format_config(cfg)


@pytest.mark.parametrize(
    ("own", "overrides", "noted"),
    [
        ("", [], None),
        ("TRAIN: {BATCH_SIZE: 4}", [], ("4", "16")),
        ("TRAIN: {BATCH_SIZE: 4}", ["TRAIN.BATCH_SIZE=8"], ("8", "16")),  # not those of the file in between
        ("TRAIN: {BATCH_SIZE: 4}", ["TRAIN.BATCH_SIZE=16"], None),
        ("TRAIN: {BATCH_SIZE: 4}\nSOLVER: {BASE_LR: 0.25}", [], None),
        ("TRAIN: {BATCH_SIZE: 4}\nSOLVER: {BASE_LR: 0.25}", ["TRAIN.BATCH_SIZE=8"], ("8", "4")),
        ("", ["TRAIN.BATCH_SIZE=4", "SOLVER.BASE_LR=0.25"], None),
        ("", ["TRAIN.BATCH_SIZE=4", "SOLVER.BASE_LR=0.5"], None),
    ],
)
def test_the_videos_of_a_rate_are_those_of_the_file_that_sets_it(write, own, overrides, noted):
    write("recipe.yaml", "SOLVER: {BASE_LR: 0.5}\nTRAIN: {BATCH_SIZE: 16}\n")
    cfg = load_config(write("x.yaml", f"_BASE_: recipe.yaml\n{own}\n"), overrides)
    found = re.search(r"takes (\d+) videos.* for (\d+):", cfg.rate_note)
    assert (found and found.groups()) == noted and bool(cfg.rate_note) == bool(noted)
    assert load_config(None, ["TRAIN.BATCH_SIZE=8"]).rate_note == ""


def test_a_loaded_configuration_stays_as_it_is():
    cfg = load_config(None)
    with pytest.raises(AttributeError):
        cfg.TRAIN.BATCH_SIZE = 1
    with pytest.raises(AttributeError, match="frozen"):
        cfg.merge_from_list(["TRAIN.BATCH_SIZE", "1"])
    assert pickle.loads(pickle.dumps(cfg)) == cfg
    assert pickle.loads(pickle.dumps(cfg)).is_frozen()
    fresh = get_cfg()
    fresh.DATA.MEAN[0] = math.pi
    assert get_cfg().DATA.MEAN[0] == 0.45


def test_changed_keys_lists_the_differences():
    overrides = "NUM_GPUS 0 DATA_LOADER.NUM_WORKERS 1 TEST.DATASET mit OUTPUT_DIR b TRAIN.MAX_STEPS 3 RNG_SEED 2"
    a, b = load_config(None), load_config(None, overrides.split())
    assert changed_keys(a, b) == {"RNG_SEED": (1, 2)}
    assert set(changed_keys(a, b, ignore=["TEST.*"])) == {
        *("NUM_GPUS", "DATA_LOADER.NUM_WORKERS", "OUTPUT_DIR", "TRAIN.MAX_STEPS", "RNG_SEED")
    }
    assert changed_keys({"A": {"B": 1}}, {}) == {"A.B": (1, None)}


def test_hardware_is_checked_apart_from_loading():
    check_hardware(load_config(None, ["NUM_GPUS", "0"]))
    cfg = load_config(None, ["NUM_GPUS", "32"])
    with pytest.raises(ConfigError, match=r"NUM_GPUS = 32.*NUM_GPUS 0"):
        check_hardware(cfg)


def test_faults_survive_the_way_between_processes():
    error = pickle.loads(pickle.dumps(ConfigError(["one", "two"])))
    assert error.faults == ["one", "two"] and str(error).startswith("2 faults")


def test_variables_are_expanded_in_files_bases_and_overrides(write, monkeypatch):
    monkeypatch.setenv("DATA_ROOT", "data")
    monkeypatch.setenv("PARTS", "parts")
    monkeypatch.setenv("BATCH", "16")
    write("parts/k400.yaml", "DATA:\n  PATH_TO_DATA_DIR: ${DATA_ROOT}/k400\n")
    write("x.yaml", "_BASE_: ${PARTS}/k400.yaml\nTRAIN: {BATCH_SIZE: '${BATCH}'}\n")
    cfg = load_config("x.yaml", ["DATA.PATH_PREFIX", "${DATA_ROOT}", "OUTPUT_DIR", "$BATCH"])
    absolute = os.path.abspath("data")
    assert (f"{absolute}/k400", absolute) == (cfg.DATA.PATH_TO_DATA_DIR, cfg.DATA.PATH_PREFIX)
    assert (cfg.TRAIN.BATCH_SIZE, cfg.OUTPUT_DIR) == (16, "$BATCH")
    assert f"PATH_TO_DATA_DIR: {absolute}/k400" in dump_config(cfg)
    assert cfg.sources["DATA.PATH_TO_DATA_DIR"] == "parts/k400.yaml:2"
    check_variables(cfg)


def test_variables_in_lists_are_expanded_or_refused(write, monkeypatch):
    monkeypatch.setenv("WIDTH", "64")
    monkeypatch.delenv("NO_SUCH", raising=False)
    path = write(
        "x.yaml", "MODEL: {OPTIONS: ['width=${WIDTH}', 'pool=${NO_SUCH}']}\nDATA: {MEAN: ['${WIDTH}', 0, 0]}\n"
    )
    cfg = load_config(path)
    assert cfg.MODEL.OPTIONS == ["width=64", "pool=${NO_SUCH}"] and cfg.DATA.MEAN == [64, 0, 0]
    with pytest.raises(ConfigError) as error:
        check_variables(cfg)
    (only,) = error.value.faults
    assert "NO_SUCH" in only and "MODEL.OPTIONS" in only


@pytest.mark.parametrize("value", [None, ""])
def test_variables_that_are_not_set_are_one_fault_each_before_a_run(write, monkeypatch, value):
    monkeypatch.delenv("DATA_ROOT", raising=False)
    if value is not None:
        monkeypatch.setenv("DATA_ROOT", value)
    text = "DATA:\n  PATH_TO_DATA_DIR: ${DATA_ROOT}/k400\n  PATH_PREFIX: ${DATA_ROOT}/k400\nOUTPUT_DIR: ${NO_SUCH}\n"
    cfg = load_config(write("x.yaml", text))
    assert cfg.DATA.PATH_TO_DATA_DIR == "${DATA_ROOT}/k400"
    (line,) = (line for line in format_config(cfg).splitlines() if "PATH_PREFIX" in line)
    assert "x.yaml:3" in line and "DATA_ROOT is not set" in line
    with pytest.raises(ConfigError) as error:
        check_variables(cfg)
    other, root = error.value.faults
    assert "NO_SUCH" in other and "OUTPUT_DIR" in other
    assert all(part in root for part in ("DATA_ROOT", "DATA.PATH_TO_DATA_DIR", "DATA.PATH_PREFIX", "run.sh"))


def test_lists_of_texts_need_no_quotes_on_the_command_line():
    cfg = load_config(None, ["MODEL.OPTIONS", "[width=64, pool=max]"])
    assert cfg.MODEL.OPTIONS == ["width=64", "pool=max"]
    with pytest.raises(ConfigError, match=r"MODEL\.OPTIONS"):
        load_config(None, ["MODEL.OPTIONS", "[width=64"])
