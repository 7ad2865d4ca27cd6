"""docs/OWN_VIDEOS.md, unchanged: its three commands, in real processes, end with the accuracy of a tested model."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
from pathlib import Path

import pytest
from make_demo_data import write_video
from run_fixtures import write_python

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
# a network and clips that a CPU core can train in seconds, and no weights to fetch
TINY = (
    'NUM_GPUS 0 UNIFORMER.PRETRAIN_NAME "" UNIFORMER.DEPTH [1,1,1,1] UNIFORMER.EMBED_DIM [8,16,32,32] '
    "UNIFORMER.HEAD_DIM 16 DATA.NUM_FRAMES 4 DATA.TRAIN_CROP_SIZE 32 DATA.TEST_CROP_SIZE 32 "
    "DATA.TRAIN_JITTER_SCALES [36,40] TRAIN.BATCH_SIZE 4 TEST.BATCH_SIZE 8 SOLVER.MAX_EPOCH 3 DATA_LOADER.NUM_WORKERS 0"
)


def commands(before: str) -> list[str]:
    """Return the commands that start with "python" of the first block after a text; a backslash joins lines."""
    text = (ROOT / "docs/OWN_VIDEOS.md").read_text(encoding="utf-8")
    block = text[text.index(before) :].split("```bash\n")[1].split("```")[0]
    return [line for line in block.replace("\\\n", " ").split("\n") if line.startswith("python")]


def run(command: str, folder: Path) -> subprocess.CompletedProcess:
    path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True)


def test_three_commands_from_a_folder_to_test_accuracy(warm, tmp_path):
    (tmp_path / "bin").mkdir()
    write_python(tmp_path / "bin/python", warm)
    for label, name in enumerate(("to the left", "to the right", "up")):
        (tmp_path / "my/videos" / name).mkdir(parents=True)
        for i in range(8):
            write_video(tmp_path / "my/videos" / name / f"{i}.mp4", seed=0, split="train", index=8 * i + label)
    whole = (tmp_path / "my/videos/up/0.mp4").read_bytes()
    (tmp_path / "my/videos/to the left/torn.mp4").write_bytes(whole[:2000])
    (tmp_path / "tools").symlink_to(ROOT / "tools")

    lists, check, train = commands("# Your own videos")
    done = run(lists, tmp_path)
    assert done.returncode == 0, done.stderr
    done = run(check, tmp_path)
    assert done.returncode == 1 and "bad files: 1 of 25" in done.stdout, done.stderr
    done = run(f"{train} {TINY}", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr

    videos = (tmp_path / "data/mine/test.csv").read_text().splitlines()
    report = json.loads((tmp_path / "output/mine/test/metrics.json").read_text())
    assert report["metrics"]["num_videos"] == len(videos) >= 3 and report["config"]["MODEL"]["NUM_CLASSES"] == 3
    assert report["views"] == {"temporal": 4, "spatial": 1} and report["checkpoint"]["path"].endswith("best.pyth")
    with open(tmp_path / "output/mine/test/predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["label"] for row in rows} == {"to the left", "to the right", "up"}
    hits = sum(row["label"] == row["top1"] for row in rows)
    assert report["metrics"]["top1"] == pytest.approx(100 * hits / len(rows))

    # and what the page says about videos without classes
    new = tmp_path / "new/videos"
    new.mkdir(parents=True)
    for i in range(3):
        write_video(new / f"clip {i}.mp4", seed=1, split="test", index=i)
    lists, predict = commands("For videos without classes")
    done = run(lists, tmp_path)
    assert done.returncode == 0, done.stderr
    done = run(f"{predict} {TINY}", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    with open(tmp_path / "output/new/test/predictions.csv", newline="") as file:
        predicted = list(csv.DictReader(file))
    assert [Path(row["id"]).name for row in predicted] == ["clip 0.mp4", "clip 1.mp4", "clip 2.mp4"]
    assert {row["top1"] for row in predicted} <= {"to the left", "to the right", "up"}
    assert {row["label"] for row in predicted} == {""} and "predictions of 3 videos x 4 views; results" in done.stdout
    report = json.loads((tmp_path / "output/new/test/metrics.json").read_text())
    assert report["metrics"]["top1"] is None and report["metrics"]["num_labelled"] == 0
    # some of them with a class
    rows = (tmp_path / "data/new/test.csv").read_text()
    (tmp_path / "data/new/test.csv").write_text(rows.replace("clip 1.mp4 -1", "clip 1.mp4 2"))
    done = run(f"{predict} {TINY}", tmp_path)
    assert done.returncode == 0 and re.search(r"top1 (0|100)\.00 .* over 1 videos x 4 views \(2 without", done.stdout)


@pytest.mark.parametrize(
    "row", re.findall(r"^\| .* \| `(.*?)`", (ROOT / "docs/OWN_VIDEOS.md").read_text(), re.MULTILINE)
)
def test_values_that_the_page_names_are_valid(row):
    from slowfast.config import load_config

    load_config(ROOT / "exp/finetune/config.yaml", row.replace('""', "").split(" "))
