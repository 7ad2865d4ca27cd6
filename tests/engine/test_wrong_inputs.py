"""Wrong inputs of a user end with exit code 2 and one line that names the cure, before work is lost."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import run_net as program
import torch

from slowfast.models import UniFormer
from slowfast.run.checkpoint import CheckpointWriter, checkpoint_dir
from slowfast.weights.tensors import load_tensors


@pytest.fixture
def fails(run_here):
    """Run tools/run_net.py in this process, check that it exits with code 2, and return its error message."""

    def run(*arguments: object) -> str:
        done = run_here(program, *arguments)
        assert done.returncode == 2 and done.stderr.count("error: ") == 1
        return done.stderr[done.stderr.index("error: ") :]

    return run


def small_model(**options) -> UniFormer:
    """Return the network of the experiment, or another one."""
    return UniFormer(
        **{"num_classes": 8, "depth": (1, 1, 1, 1), "embed_dim": (8, 16, 32, 32), "head_dim": 16, **options}
    )


def write_list(folder: Path, text: str) -> tuple[str, str]:
    folder.mkdir(exist_ok=True)
    for split in ("train", "val", "test"):
        (folder / f"{split}.csv").write_text(text)
    return "DATA.PATH_TO_DATA_DIR", str(folder)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ("", ["train.csv", "path label"]),
        ("train_0.mp4,0\ntrain_1.mp4,1\n", ["train.csv:1", "DATA.PATH_LABEL_SEPARATOR"]),
        ("train_0.mp4 0\ntrain_1.mp4 8\n", ["train.csv:2", "8", "MODEL.NUM_CLASSES"]),
        ("train_0.mp4 0\ntrain_1.mp4 left\n", ["train.csv:2", "left"]),
        ("a.mp4 0\nb.mp4 1\nc.mp4 2\nd.mp4 3\ntrain_0.mp4 0\n", ["4 of", "a.mp4", "c.mp4", "DATA.PATH_PREFIX"]),
    ],
    ids=["empty", "separator", "label out of range", "label not a number", "videos missing"],
)
def test_faulty_list_rows_stop_a_run_with_file_and_line(rows, expected, experiment, fails, tmp_path):
    message = fails("--cfg", experiment, *write_list(tmp_path / "lists", rows))
    for part in expected:
        assert part in message
    if "a.mp4" in rows:
        assert "d.mp4" not in message  # the first three are named


def test_the_test_list_is_read_before_training(experiment, videos, fails, tmp_path):
    folder = write_list(tmp_path / "lists", (videos / "train.csv").read_text())
    (tmp_path / "lists" / "test.csv").write_text("train_0.mp4 9\n")
    message = fails("--cfg", experiment, *folder)
    assert "test.csv:1" in message and not checkpoint_dir(str(tmp_path / "out")).exists()


def test_the_checkpoint_to_test_is_looked_for_before_training(experiment, fails, tmp_path):
    message = fails("--cfg", experiment, "TEST.CHECKPOINT_FILE_PATH", "nowhere.pyth")
    assert "'nowhere.pyth' does not exist" in message and not checkpoint_dir(str(tmp_path / "out")).exists()


def test_a_missing_list_is_named(experiment, fails, tmp_path):
    message = fails("--cfg", experiment, "DATA.PATH_TO_DATA_DIR", tmp_path / "nowhere")
    assert "nowhere/train.csv" in message and "DATA.PATH_TO_DATA_DIR" in message


def test_a_run_with_nothing_to_do_exits_with_code_2(experiment, fails):
    message = fails("--cfg", experiment, "TRAIN.ENABLE", False, "TEST.ENABLE", False)
    assert message.count("\n") == 1 and "TRAIN.ENABLE" in message and "TEST.ENABLE" in message


def test_initial_weights_are_not_tested(experiment, fails):
    message = fails("--cfg", experiment, "TRAIN.ENABLE", False, "UNIFORMER.PRETRAIN_NAME", "mine.pth")
    assert "no checkpoint to test" in message


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_gpus_are_refused_on_a_machine_without(experiment, fails):
    message = fails("--cfg", experiment, "NUM_GPUS", 8, "TRAIN.BATCH_SIZE", 16, "TEST.BATCH_SIZE", 8)
    assert "NUM_GPUS" in message and "8" in message and "NUM_GPUS 0" in message


def test_checkpoints_of_another_model_are_refused(experiment, fails, tmp_path):
    test_only = ("--cfg", experiment, "TRAIN.ENABLE", False, "TEST.CHECKPOINT_FILE_PATH", tmp_path / "w.pth")
    assert "w.pth" in fails(*test_only) and not (tmp_path / "w.pth").exists()
    torch.save({"model_state": small_model(num_classes=12).state_dict()}, tmp_path / "w.pth")
    assert "12 classes" in fails(*test_only)
    torch.save(small_model(depth=(1, 2, 1, 1)).state_dict(), tmp_path / "w.pth")
    assert "of another model" in fails(*test_only)
    train = ("--cfg", experiment, "TRAIN.CHECKPOINT_FILE_PATH", tmp_path / "w.pth")
    assert "of another model" in fails(*train)
    assert "no checkpoint to test" in fails("--cfg", experiment, "TRAIN.ENABLE", False)
    assert "'not_there' does not exist" in fails("--cfg", experiment, "UNIFORMER.PRETRAIN_NAME", "not_there")


def test_a_validation_without_labels_is_refused_before_the_training(experiment, videos, fails, tmp_path):
    folder = write_list(tmp_path / "lists", (videos / "train.csv").read_text())
    (tmp_path / "lists" / "val.csv").write_text("val_0.mp4 -1\nval_1.mp4 -1\n")
    message = fails("--cfg", experiment, *folder)
    assert "val.csv:1" in message and "label -1" in message
    assert not checkpoint_dir(str(tmp_path / "out")).exists()


def test_the_output_folder_of_another_run_is_refused(experiment, fails, run_here, tmp_path):
    assert run_here(program, "--cfg", experiment, "TRAIN.MAX_STEPS", 1, "TEST.ENABLE", False).returncode == 0
    folder = checkpoint_dir(str(tmp_path / "out"))
    [saved] = folder.glob("checkpoint_epoch_*.pyth")
    for name in (saved.name, "best.pyth"):  # the best one alone is a run too
        saved.rename(folder / name)
        before = sorted(path.read_bytes() for path in folder.iterdir())
        message = fails("--cfg", experiment, "SOLVER.BASE_LR", 0.1)
        assert "SOLVER.BASE_LR 0.001 " in message and "0.1 " in message and "OUTPUT_DIR" in message
        assert "TRAIN.AUTO_RESUME" in fails("--cfg", experiment, "TRAIN.AUTO_RESUME", False)
        assert before == sorted(path.read_bytes() for path in folder.iterdir())


def test_weights_cannot_be_resumed(experiment, fails, tmp_path):
    state = {"step": 1, "steps_per_epoch": 6, "model_state": small_model().state_dict()}
    with CheckpointWriter(str(tmp_path / "out")) as writer:
        writer.save(state)
    assert "optimizer_state" in fails("--cfg", experiment)
    with CheckpointWriter(str(tmp_path / "out")) as writer:
        writer.save({**state, "format": 99})
    assert "format 99" in fails("--cfg", experiment)


def test_classes_in_another_order_stop_a_test(experiment, videos, fails, tmp_path):
    names = (videos / "class_names.txt").read_text().split()
    names[1], names[2] = names[2], names[1]
    torch.save({"model_state": small_model().state_dict(), "class_names": names}, tmp_path / "w.pth")
    message = fails("--cfg", experiment, "TRAIN.ENABLE", False, "TEST.CHECKPOINT_FILE_PATH", tmp_path / "w.pth")
    assert "'move_up'" in message and "'move_right'" in message


def test_divergence_keeps_the_good_checkpoint(experiment, fails, tmp_path):
    rates = ("SOLVER.BASE_LR", 1e30, "SOLVER.WARMUP_START_LR", 1e30)
    message = fails("--cfg", experiment, *rates, "LOG_PERIOD", 1000, "TRAIN.MAX_NONFINITE", 3)
    assert "nan" in message and "3 steps" in message and "SOLVER.BASE_LR" in message
    assert not checkpoint_dir(str(tmp_path / "out")).exists()
    dump = load_tensors(next((tmp_path / "out" / "nonfinite").iterdir()))
    assert dump["batches"][0]["video"].shape[2:] == (4, 32, 32) and "BASE_LR: 1.0e+30" in dump["cfg"]
    assert "Traceback" in (tmp_path / "out" / "log.txt").read_text()


def test_undecodable_test_videos_are_named_and_the_rest_is_tested(experiment, videos, fails, run_here, tmp_path):
    (tmp_path / "torn.mp4").write_bytes((videos / "val_0.mp4").read_bytes()[:500])
    rows = [f"{videos}/val_{i}.mp4 {i}\n" for i in range(3)]
    rows.insert(2, f"{tmp_path}/torn.mp4 3\n")
    folder = write_list(tmp_path / "lists", "".join(rows))
    torch.save(small_model().state_dict(), tmp_path / "w.pth")
    test = ("--cfg", experiment, *folder, "DATA.PATH_PREFIX", "''", "TRAIN.ENABLE", False,
            "TEST.CHECKPOINT_FILE_PATH", tmp_path / "w.pth")  # fmt: skip
    message = fails(*test)
    assert "error: 1 " in message and "torn.mp4" in message and "TEST.SKIP_BAD True" in message
    assert run_here(program, *test, "TEST.SKIP_BAD", True).returncode == 0
    out = tmp_path / "out" / "test"
    report = json.loads((out / "metrics.json").read_text())
    assert (report["metrics"]["num_videos"], report["metrics"]["num_skipped"]) == (3, 1)
    assert [path for path, _ in report["skipped"]] == [f"{tmp_path}/torn.mp4"]
    assert np.load(out / "scores.npz")["index"].tolist() == [0, 1, 3]
    assert len((out / "predictions.csv").read_text().splitlines()) == 4


def test_a_list_that_changed_stops_a_resume(experiment, videos, fails, run_here, tmp_path):
    folder = write_list(tmp_path / "lists", (videos / "train.csv").read_text())
    run = ["--cfg", experiment, *folder, "TEST.ENABLE", False]
    assert run_here(program, *run, "TRAIN.MAX_STEPS", 1).returncode == 0
    write_list(tmp_path / "lists", "".join((videos / "train.csv").read_text().splitlines(keepends=True)[:20]))
    assert "6 steps" in fails(*run)


def test_a_wrong_address_and_an_unwritable_folder_are_named(experiment, fails):
    assert "tcp://HOST:PORT" in fails("--cfg", experiment, "--num_shards", 2, "--init_method", "tcp://localhost")
    assert "cannot be written" in fails("--cfg", experiment, "OUTPUT_DIR", "/proc/nothing/out")


def test_a_batch_larger_than_the_list_is_refused(experiment, fails):
    assert "TRAIN.BATCH_SIZE" in fails("--cfg", experiment, "TRAIN.BATCH_SIZE", 64)
