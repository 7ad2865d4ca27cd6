"""Test the commands of tools/prepare_data.py: exit codes, output, and repeated calls after a kill."""

from __future__ import annotations

import csv
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import prepare_data
import pytest
from make_demo_data import write_video

from slowfast.config import load_config

ROOT = Path(__file__).parents[2]


def start(*arguments: object, cwd: Path) -> subprocess.Popen:
    command = [sys.executable, str(ROOT / "tools/prepare_data.py"), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=cwd, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


@pytest.fixture
def run(folder, monkeypatch, run_here):
    """Call the command in `folder`, in this process: (exit code, standard output, standard error)."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.chdir(folder)
        done = run_here(prepare_data, *arguments)
        return done.returncode, done.stdout, done.stderr

    return call


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Make `videos` with three classes of five videos; one file is cut short."""
    folder = tmp_path_factory.mktemp("prepare")
    for label, name in enumerate(("left", "right", "up é")):
        (folder / "videos" / name).mkdir(parents=True)
        for i in range(5):
            write_video(folder / "videos" / name / f"clip {i}.mp4", seed=0, split="train", index=8 * i + label)
    torn = folder / "videos/left/torn.mp4"
    torn.write_bytes((folder / "videos/left/clip 0.mp4").read_bytes()[:2000])
    return folder


@pytest.mark.slow
def test_from_a_folder_to_clean_lists(run, folder, tmp_path):
    lists = tmp_path / "lists"
    process = start("lists", "videos", "--out", lists, cwd=folder)
    out, err = process.communicate()
    assert (process.returncode, err) == (0, "")
    assert "15 with blanks" in out and "wrote train.csv, val.csv, test.csv, class_names.txt" in out
    cfg = load_config(lists / "config.yaml")
    assert cfg.MODEL.NUM_CLASSES == 3 and cfg.UNIFORMER.PRETRAIN_NAME == "uniformer_small_k400_16x4"
    assert (str(lists), str(folder / "videos")) == (cfg.DATA.PATH_TO_DATA_DIR, cfg.DATA.PATH_PREFIX)
    # data.yaml fits any experiment, here one whose own lists have commas
    network = lists / "network.yaml"
    network.write_text(f"_BASE_: [{prepare_data.ROOT}/exp/uniformer_s16x4_k400/config.yaml, data.yaml]\n")
    assert load_config(network).DATA.PATH_LABEL_SEPARATOR == " "

    code, out, err = run("check", "videos", "--lists", lists, "--clean", tmp_path / "clean")
    assert (code, err) == (1, "")
    assert "left/torn.mp4: " in out and "bad files: 1 of 16" in out
    rows = [(tmp_path / name / f"{s}.csv").read_text() for name in ("lists", "clean") for s in ("train", "val", "test")]
    assert sum(text.count("torn.mp4") for text in rows[:3]) == 1 and "torn.mp4" not in "".join(rows[3:])
    assert sum(text.count("\n") for text in rows[3:]) == 15
    assert (tmp_path / "clean/class_names.txt").read_text() == "left\nright\nup é\n"
    code, out, _ = run("check", "videos", "--lists", tmp_path / "clean")
    assert code == 0 and "bad files: 0 of 15" in out

    code, out, err = run("lists", "videos", "--out", lists, "--seed", 5)
    assert code == 2 and err.startswith("error: ") and err.count("\n") == 1 and "--overwrite" in err
    code, out, _ = run("lists", "videos", "--out", lists)
    assert code == 0 and "3 classes; unchanged" in out

    # in their own place, too: the first command again changes nothing
    code, out, _ = run("check", "videos", "--lists", lists, "--clean", lists)
    assert code == 1 and out.count(": 1 row left out; ") == 1
    (original,) = lists.glob("*.orig")
    cleaned = lists / original.stem
    assert "torn.mp4" in original.read_text() and "torn.mp4" not in cleaned.read_text()
    code, out, _ = run("check", "videos", "--lists", lists, "--clean", lists)
    assert code == 0 and "bad files: 0 of 15; " in out
    code, out, _ = run("lists", "videos", "--out", lists)
    assert (
        code == 0 and "3 classes; unchanged" in out and re.search(rf"--overwrite.*: {cleaned.name}$", out, re.MULTILINE)
    )
    assert "torn.mp4" in original.read_text() and "torn.mp4" not in cleaned.read_text()

    # a .orig is never replaced
    kept = original.read_bytes()
    cleaned.write_text(cleaned.read_text() + "left/torn.mp4 0\n")
    code, out, _ = run("check", "videos", "--lists", lists, "--clean", lists)
    assert code == 1 and "bad files: 1 of 16; " in out
    assert original.read_bytes() == kept and "torn.mp4" not in cleaned.read_text()

    # a list that is no part of its .orig is not cleaned, because it would not be saved
    other = "left/torn.mp4 7\n" + cleaned.read_text()
    cleaned.write_text(other)
    assert run("check", "videos", "--lists", lists, "--clean", lists)[0] == 2
    assert original.read_bytes() == kept and cleaned.read_text() == other
    code, out, _ = run("lists", "videos", "--out", lists, "--overwrite")
    assert code == 0 and f"wrote {cleaned.name}" in out and not original.exists() and "torn.mp4" in cleaned.read_text()


@pytest.mark.slow
def test_lists_are_not_cleaned_of_unreachable_videos(run, folder, tmp_path):
    lists = tmp_path / "lists"
    assert run("lists", "videos", "--out", lists)[0] == 0
    (tmp_path / "unmounted").mkdir()
    before = {path: path.read_bytes() for path in lists.iterdir()}
    arguments = ("check", tmp_path / "unmounted", "--lists", lists, "--out", tmp_path / "report", "--clean")
    for target in (lists, tmp_path / "clean"):
        code, out, err = run(*arguments, target)
        assert code == 2 and "bad files: 16 of 16" in out
        assert f"16 of 16 files below {tmp_path / 'unmounted'}" in err and "--max-bad-share 0.2" in err
        code, _, err = run(*arguments, target, "--max-bad-share", 1)
        assert code == 2 and "no row would be left" in err
    assert {path: path.read_bytes() for path in lists.iterdir()} == before and not (tmp_path / "clean").exists()
    assert run("check", "videos", "--lists", lists, "--max-bad-share", 1.5)[0] == 2

    # with a higher limit the lists are cleaned, and .orig stays the first list
    for name in ("left", "right", "up é"):
        (tmp_path / "unmounted" / name).symlink_to(folder / "videos" / name)
    first = {path.name: path.read_bytes() for path in lists.glob("*.csv")}
    (tmp_path / "unmounted/up é").unlink()
    assert run(*arguments, lists)[0] == 2
    code, out, err = run(*arguments, lists, "--max-bad-share", 1)
    assert (code, err) == (1, "") and "no video is left of 1 class, such as label 2" in out
    (tmp_path / "unmounted/right").unlink()
    assert run(*arguments, lists, "--max-bad-share", 1)[0] == 1
    for name, content in first.items():
        assert (lists / f"{name}.orig").read_bytes() == content
        rows = (lists / name).read_text().splitlines()
        assert rows and all(row.startswith("left/") for row in rows)


def test_class_names_that_are_not_utf8_are_copied(run, folder, tmp_path):
    (tmp_path / "names.txt").write_bytes("left\nright\nup é\nna\u00efve\n".encode().replace(b"\xc3\xaf", b"\xef"))
    assert run("lists", "videos", "--out", tmp_path / "lists", "--class-names", tmp_path / "names.txt")[0] == 0
    code, _, err = run("check", "videos", "--lists", tmp_path / "lists", "--clean", tmp_path / "clean")
    assert (code, err) == (1, "")
    assert (tmp_path / "clean/class_names.txt").read_bytes() == (tmp_path / "names.txt").read_bytes()


@pytest.mark.slow
def test_a_killed_check_is_continued_by_the_next_call(run, folder, tmp_path):
    """The check is killed when at least one row is written; the next call decodes only the other files."""
    process = start("check", "videos", "--out", tmp_path, "--workers", 1, cwd=folder)
    report = tmp_path / "report.csv"
    while not (report.exists() and report.read_text().count("\n") > 2):
        assert process.poll() is None or report.exists()
        time.sleep(0.01)
    process.kill()
    process.communicate()
    done = report.read_text()
    done = done[: done.rfind("\n") + 1].replace(",h264,", ",seen before,")
    report.write_text(done + "torn li")
    code, out, _ = run("check", "videos", "--out", tmp_path)
    assert code == 1 and "bad files: 1 of 16" in out
    with open(report, newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 16 and sum(row["codec"] == "seen before" for row in rows) == done.count("seen before") > 0
    assert run("check", "videos", "--out", tmp_path, "--full")[0] == 1
    with open(report, newline="") as file:
        assert {(row["ok"], row["full"], row["codec"]) for row in csv.DictReader(file)} == {
            ("1", "1", "h264"), ("0", "", ""),
        }  # fmt: skip


def test_copies_are_small_and_listed(run, folder, tmp_path):
    arguments = ("reencode", "videos", "--out", tmp_path / "small", "--short-side", 48, "--measure", 2)
    code, out, err = run(*arguments)
    assert (code, err) == (1, "")
    assert "left/torn.mp4: " in out and ": 15 copies" in out and "; 1 broken" in out
    assert "16 random frames: " in out and "MB before" in out
    copies = {path.relative_to(tmp_path / "small").as_posix() for path in (tmp_path / "small").rglob("*.mp4")}
    originals = {path.relative_to(folder / "videos").as_posix() for path in (folder / "videos").rglob("*.mp4")}
    assert copies == originals - {"left/torn.mp4"}
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "small").rglob("*.mp4")}
    assert run(*arguments)[0] == 1
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "small").rglob("*.mp4")} == before
    code, _, err = run(*arguments, "--crf", 30)
    assert code == 2 and "crf" in err


def test_lists_of_copies_name_the_originals_without_one(run, folder, tmp_path):
    """A file that is cut short and a folder of images are not encoded, so they cannot be in the lists."""
    videos = tmp_path / "videos"
    shutil.copytree(folder / "videos", videos)
    images = videos / "right/images"
    images.mkdir()
    for number in (1, 2):
        cv2.imwrite(str(images / f"img_{number:05d}.jpg"), np.zeros((48, 64, 3), np.uint8))
    assert run("reencode", videos, "--out", tmp_path / "small", "--measure", 0)[0] == 1
    code, out, err = run("lists", tmp_path / "small", "--out", tmp_path / "lists")
    assert (code, err) == (0, "")
    [line] = [line for line in out.splitlines() if "without a copy" in line]
    assert line.split()[0] == "2" and line.endswith("left/torn.mp4, right/images")
    assert "unknown type" not in out
    shutil.copyfile(videos / "left/clip 0.mp4", videos / "left/torn.mp4")
    assert run("reencode", videos, "--out", tmp_path / "small", "--measure", 0)[0] == 0
    out = run("lists", tmp_path / "small", "--out", tmp_path / "lists", "--overwrite")[1]
    assert any(line.endswith("left out: right/images") for line in out.splitlines() if "without a copy" in line)


def test_official_annotations_become_lists(run, folder, tmp_path):
    for split, numbers in (("train", "012"), ("test", "34")):
        (tmp_path / f"{split}list01.txt").write_text(
            "".join(f"left/clip_{n}.avi 1\nright/clip_{n}.avi 2\n" for n in numbers)
        )
    (tmp_path / "classInd.txt").write_text("1 left\n2 right\n")
    arguments = ("lists", "videos", "--dataset", "ucf101", "--annotations", tmp_path, "--out", tmp_path / "lists")
    code, _, err = run(*arguments)
    assert code == 2 and "names 2 classes, but UCF101 has 101" in err
    code, _, err = run(*arguments, "--subset")
    assert code == 2 and "'left/clip_0.avi'" in err
    for path in tmp_path.glob("*list01.txt"):
        path.write_text(path.read_text().replace("_", "-"))
    for label in ("left", "right"):
        for n in range(5):
            (tmp_path / "linked" / label).mkdir(parents=True, exist_ok=True)
            (tmp_path / "linked" / label / f"clip-{n}.mp4").symlink_to(folder / f"videos/{label}/clip {n}.mp4")
    code, out, err = run("lists", tmp_path / "linked", *arguments[2:], "--subset")
    assert (code, err) == (0, "") and "train: 6 videos, 3 to 3 per class" in out
    assert (tmp_path / "lists/val.csv").read_text() == "".join(
        f"{label}/clip-{n}.mp4 {k}\n" for k, label in enumerate(("left", "right")) for n in "34"
    )
    assert not (tmp_path / "lists/config.yaml").exists()  # its recipe is in exp/


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("lists", "nowhere", "--out", "o"), "error: no folder nowhere"),
        (("lists", "videos", "--out", "o", "--val-share", "1"), "error: --val-share 1.0 and --test-share"),
        (("lists", "videos", "--out", "o", "--dataset", "k400"), "error: --dataset k400 needs --annotations"),
        (("lists", "videos", "--out", "o", "--dataset", "k710", "--annotations", "."), "error: . has 0 files with"),
        (("lists", "videos", "--out", "o", "--dataset", "imagenet"), "error: the annotations of ImageNet-1K are not"),
        (("lists", "videos", "--out", "o", "--annotations", "."), "error: --annotations . needs --dataset"),
        (("lists", "videos", "--out", "o", "--class-names", "no.txt"), "error: no.txt cannot be read"),
        (("lists", "videos", "--out", "videos/left/torn.mp4"), "error: [Errno 17] File exists"),
        (("lists", "videos", "--out", "o", "--group", "("), "error: --group ( is no regular expression"),
        (("check", "videos"), "error: --out is needed"),
        (("check", "videos", "--out", "o", "--clean", "p"), "error: --clean p needs --lists"),
        (("check", "videos", "--lists", "videos"), "error: no lists in videos"),
        (("check", "videos", "--out", "o", "--workers", "0"), "--workers"),
        (("reencode", "videos", "--out", "videos/small"), "error: --out videos/small and videos lie in one another"),
        (("reencode", "videos", "--out", "o", "--crf", "60"), "--crf"),
        (("reencode", "videos", "--out", "o", "--preset", "quick"), "--preset"),
    ],
)  # fmt: skip
def test_faults_end_in_one_line(run, folder, arguments, message):
    code, _, err = run(*arguments)
    assert code == 2 and message in err and "Traceback" not in err
    assert not (folder / "o").exists()


def test_class_names_of_lists_from_elsewhere(run, tmp_path):
    (tmp_path / "train.csv").write_text("".join(f"x/{n}.mp4 {n % 3}\n" for n in range(9)))
    (tmp_path / "names.json").write_text('{"0": "up", "2": "left", "1": "down"}')
    command = ("classes", tmp_path, "--annotations", tmp_path / "names.json")
    code, out, _ = run(*command)
    assert code == 0 and "3 classes" in out
    assert (tmp_path / "class_names.txt").read_text() == "up\ndown\nleft\n"
    assert run(*command)[0] == 0
    (tmp_path / "names.json").write_text('["a", "b", "c"]')
    assert run(*command)[0] == 2
    assert run(*command, "--overwrite")[0] == 0
    assert (tmp_path / "class_names.txt").read_text() == "a\nb\nc\n"
    assert run("classes", tmp_path)[0] == 2


def test_official_lists_of_ids_are_checked_and_cleaned(run, folder, tmp_path):
    """Lists of Something-Something name frame folders by their id; here the files are the released videos."""
    (tmp_path / "videos").mkdir()
    video = (folder / "videos/left/clip 0.mp4").read_bytes()
    for number, content in (("78687", video), ("42326", video), ("3", video[:2000])):
        (tmp_path / f"videos/{number}.mp4").write_bytes(content)
    (tmp_path / "somesomev2_rgb_train_split.txt").write_text("78687 48 3\n42326 51 7\n")
    (tmp_path / "somesomev2_rgb_validation_split.txt").write_text("42326 51 7\n3 40 7\n9 40 7\n")
    code, out, _ = run(
        *("check", tmp_path / "videos", "--lists", tmp_path, "--dataset", "sthv2", "--clean", tmp_path / "clean"),
        *("--max-bad-share", 0.5),
    )
    assert code == 1 and "bad files: 2 of 4" in out
    assert (tmp_path / "clean/somesomev2_rgb_train_split.txt").read_text() == "78687 48 3\n42326 51 7\n"
    assert (tmp_path / "clean/somesomev2_rgb_validation_split.txt").read_text() == "42326 51 7\n"


@pytest.mark.parametrize(
    ("recipe", "network", "frozen"),
    [("uniformer_s", "Uniformer", False), ("uniformerv2_b16", "Uniformerv2", False), ("frozen", "Uniformerv2", True)],
)
def test_a_recipe_chooses_the_network(run, tmp_path, recipe, network, frozen):
    out = tmp_path / "lists"
    assert run("lists", "videos", "--out", out, "--recipe", recipe)[0] == 0
    cfg = load_config(out / "config.yaml")
    assert (network, frozen, 3) == (cfg.MODEL.MODEL_NAME, cfg.UNIFORMERV2.FROZEN, cfg.MODEL.NUM_CLASSES)
    assert (cfg.NUM_GPUS, cfg.TEST.TEST_BEST, cfg.TRAIN.EVAL_PERIOD) == (1, True, 1)
    config = (out / "config.yaml").read_text()
    other = "frozen" if recipe == "uniformer_s" else "uniformer_s"
    code, _, error = run("lists", "videos", "--out", out, "--recipe", other)
    assert code == 2 and "config.yaml" in error and (out / "config.yaml").read_text() == config
    assert run("lists", "videos", "--out", out, "--recipe", recipe)[0] == 0 == run("lists", "videos", "--out", out)[0]


def test_a_recipe_is_for_own_videos(run, tmp_path):
    for options in (("--unlabelled",), ("--dataset", "k400")):
        assert run("lists", "videos", "--out", tmp_path / "lists", "--recipe", "frozen", *options)[0] == 2
    assert not (tmp_path / "lists").exists()


def test_the_programs_use_the_cores_of_the_job_by_default(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 5, 7}, raising=False)
    for command in (["check", "videos"], ["reencode", "videos", "--out", "o"]):
        assert prepare_data.parse_args(command).workers == 3
