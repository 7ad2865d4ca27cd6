"""Every block of commands in the documentation runs verbatim.

Each page runs in a new shell and in its own copy of the checkout. The shell has the environment of a user who has just
logged in, so a page must activate the environment. The commands are unchanged, the work is made small: the `python` of
the copy adds KEY VALUE pairs to the programs that it starts, except for keys that the page gives, and forks them from a
server with all imports done.
"""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import ipykernel_launcher
import nbformat
import pytest
import torch
from make_demo_data import CLASS_NAMES, write_video
from nbclient import NotebookClient
from run_fixtures import write_python
from torchvision.models._meta import _KINETICS400_CATEGORIES

import slowfast
from slowfast.config import load_config
from slowfast.models.build import build_model
from slowfast.utils.logging import read_metrics
from slowfast.weights.tensors import load_tensors

ROOT = Path(__file__).parents[2]
PAGES = sorted(path.relative_to(ROOT).as_posix() for folder in (ROOT, ROOT / "docs") for path in folder.glob("*.md"))
# Beginnings of commands that cannot run in this test, and why.
NOT_RUN = {
    "git clone <address of this repository>": "needs the network",
    "python -m venv .venv": "needs the network; .ci/run installs",
    "python3 -m venv .venv": "would replace the environment of this test",
    ".venv/bin/pip install": "needs the network",
    "pip install": "needs the network; .ci/run installs",
    "make test": "is what runs this test",
    "pytest tests/": "is what runs this test",
    "make dev": "needs the network; .ci/run installs",
    "slowfast-doctor": "is run by tests/tools/test_doctor.py",
    "bash benchmarks/gpu.sh": "needs a GPU",
    "bash exp/demo/run.sh TRACKERS": "needs a package that is not installed; tests/engine/test_trackers.py",
    "make lint": "is a part of `make test`",
    "pre-commit install": "changes the repository",
    "python benchmarks/fingerprint.py": "takes minutes",
    "python benchmarks/loading.py": "takes half a minute; tests/benchmarks/test_loading.py runs it",
    "python benchmarks/model.py": "takes minutes; tests/benchmarks/test_model.py runs it",
    "python benchmarks/views.py": "takes half a minute; tests/benchmarks/test_views.py runs its parts",
    'python -c "import timm, torch; torch.save(timm.create_model(': "needs the network",
    "DATA_ROOT=/data bash exp/uniformer_s16x4_k400/test.sh TEST.CHECKPOINT_FILE_PATH": "needs the network",
    "DATA_ROOT=/data bash exp/uniformerv2_k400_b16_f8x224/run.sh": "needs GPUs",
    "DATA_ROOT=/data python tools/run_net.py --cfg exp/uniformerv2_k400_b16_f8x224/config.yaml --find": "needs GPUs",
}
TINY = {
    "NUM_GPUS": "0", "DATA_LOADER.NUM_WORKERS": "0", "DATA_LOADER.DECODE_TIMEOUT": "0",
    "TRAIN.BATCH_SIZE": "4", "TEST.BATCH_SIZE": "8",
    "SOLVER.MAX_EPOCH": "1", "SOLVER.WARMUP_EPOCHS": "0.0", "TEST.NUM_SPATIAL_CROPS": "1", "DATA.NUM_FRAMES": "4",
    "DATA.TRAIN_CROP_SIZE": "32", "DATA.TEST_CROP_SIZE": "32", "DATA.TRAIN_JITTER_SCALES": "[36,40]",
    "UNIFORMER.PRETRAIN_NAME": "", "UNIFORMER.DEPTH": "[1,1,1,1]", "UNIFORMER.EMBED_DIM": "[8,16,32,32]",
    "UNIFORMER.HEAD_DIM": "16",
}  # fmt: skip
TINY_V2 = {
    "UNIFORMERV2.PRETRAIN": "k710.pth", "UNIFORMERV2.BACKBONE": "custom", "UNIFORMERV2.TOWER": "[32,2,2,8,32]",
    "UNIFORMERV2.RETURN_LIST": "[0,1]", "UNIFORMERV2.N_LAYERS": "2", "UNIFORMERV2.N_DIM": "32",
    "UNIFORMERV2.N_HEAD": "2", "UNIFORMERV2.MLP_DROPOUT": "[0.0,0.0]",
}  # fmt: skip


class Smaller(NamedTuple):
    """Additions to the command line of a program; the first row that fits is used."""

    pattern: str
    flags: list[str]
    pairs: dict[str, str]


SMALLER = [
    Smaller(r"make_demo_data\.py", ["--train", "16", "--test", "8"], {}),
    Smaller(r"run_net\.py.*--show", [], {}),  # does no work, and values must fit those of the file
    Smaller(r"run_net\.py.*BACKBONE timm/", ["--show"], {}),  # a ViT-B
    Smaller(r"run_net\.py.*(uniformerv2_|mine_v2)", [], TINY | TINY_V2),
    Smaller(r"run_net\.py.*MAX_EPOCH 22", [], TINY | {"TRAIN.MAX_STEPS": "8"}),  # one more epoch, not 21
    Smaller(r"run_net\.py", [], TINY),
]


def blocks(page: str) -> list[tuple[str, str]]:
    """Return the (language, text) of the fenced blocks of a page."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = re.findall(r"^( *)```(.*)\n((?:.*\n)*?)\1```$", text, re.M)
    assert len(found) * 2 == len(re.findall(r"^ *```", text, re.M)), f"{page} has a block without an end"
    return [(language, textwrap.dedent(content)) for _, language, content in found]


def commands(block: str) -> list[str]:
    """Return the commands of a block of bash; a backslash joins lines."""
    return [line for line in block.replace("\\\n", " ").split("\n") if line and not line.startswith("#")]


@pytest.mark.parametrize("page", PAGES)
def test_a_block_of_commands_has_a_language(page):
    for language, text in blocks(page):
        assert language in ("bash", "python", "shell", ""), f"{page}: blocks of {language} are not run"
        assert language or not re.search(r"^(\$|bash|python|pip|make|source|git|import|from) ", text, re.M), page


def test_excluded_commands_exist_on_a_page():
    lines = [line for page in PAGES for kind, text in blocks(page) if kind == "bash" for line in commands(text)]
    assert [start for start in NOT_RUN if not any(line.startswith(start) for line in lines)] == []


def test_the_page_of_public_names_is_up_to_date(call):
    assert call("docs/make_api.py", "--check").returncode == 0


def not_in_a_checkout(folder: str, names: list[str]) -> list[str]:
    made = ("data", "output", "pretrained") if Path(folder) == ROOT else ()
    return [name for name in names if name.startswith(".") or name in ("__pycache__", *made)]


def make_checkout(folder: Path, inputs: Path, warm: str, fresh: bool = False, pictures: str = "$^") -> None:
    """Copy the checkout, with an environment and with the files that the pages assume."""
    shutil.copytree(ROOT, folder, ignore=not_in_a_checkout)
    shutil.copytree(inputs, folder, dirs_exist_ok=True, copy_function=os.link)
    environment = folder / ".venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    (environment / ".installed").touch()
    write_python(environment / "bin/python", warm, SMALLER, fresh, pictures)
    for command, function in re.findall(r'"(\S+) = slowfast\.commands:(\w+)"', (ROOT / "setup.py").read_text()):
        script = environment / "bin" / command
        program = script.with_name(f"{command}.py")
        call = f"import sys\n    from slowfast.commands import {function}\n    sys.exit({function}())\n"
        program.write_text(f"if __name__ == '__main__':\n    {call}")
        script.write_text(f"#!/bin/sh\nexec '{environment}/bin/python' '{program}' \"$@\"\n")
        script.chmod(0o755)


@pytest.fixture(scope="module")
def inputs(made_once) -> Path:
    """Return a folder with the files that the pages assume, except a trained demo."""
    return made_once("inputs", make_inputs)


def make_inputs(folder: Path) -> None:
    """Make own videos of 12 classes, new ones, and the files below /data and DOWNLOADED."""
    clip = folder / "clip.mp4"
    for index, name in enumerate((*CLASS_NAMES, "a", "b", "c", "d")):
        for number in range(3):
            path = folder / f"my/videos/{name}/person{number}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_video(path, seed=number, split="train", index=index)
            flat = folder / f"my/flat/{name}_{number}.mp4"
            flat.parent.mkdir(exist_ok=True)
            flat.hardlink_to(path)
            with open(folder / "labels.csv", "a", encoding="utf-8") as table:
                table.write(f"{flat.name},{name}\n")
    for number in range(2):
        path = folder / f"new/videos/{number}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_video(path, seed=number, split="val", index=number)
    write_video(clip, seed=0, split="val", index=0)

    k400 = folder / "disk/k400"
    k400.mkdir(parents=True)
    (folder / "DOWNLOADED/annotations").mkdir(parents=True)
    for split in ("train", "validate"):
        rows = [f"{name},{split}{label:05d},1,11,{split}" for label, name in enumerate(_KINETICS400_CATEGORIES)]
        text = "\n".join(["label,youtube_id,time_start,time_end,split", *rows]) + "\n"
        (folder / f"DOWNLOADED/annotations/{split}.csv").write_text(text)
        for label in range(8):
            (k400 / f"{split}{label:05d}_000001_000011.mp4").hardlink_to(clip)

    k600, names = folder / "disk/k600", [f"class {label}" for label in range(710)]
    k600.mkdir()
    (k600 / "clip.mp4").hardlink_to(clip)
    for split in ("train", "val", "test"):
        (k600 / f"{split}.csv").write_text("".join(f"clip.mp4,{label}\n" for label in range(8)))
    (k600 / "class_names.txt").write_text("".join(f"{name}\n" for name in names[-600:]))
    (folder / "disk/k710_names.txt").write_text("".join(f"{name}\n" for name in names))

    state = slowfast.create_model("uniformer_s", num_classes=400).state_dict()
    torch.save(dict(state), folder / "best.pyth")  # tensors alone, as the authors release them
    (folder / "home").mkdir()
    (folder / "home/uniformer_s16x4_k400.pth").hardlink_to(folder / "best.pyth")
    pairs = {**TINY, **TINY_V2, "UNIFORMERV2.PRETRAIN": "", "MODEL.NUM_CLASSES": "710"}
    k710 = load_config(
        ROOT / "exp/uniformerv2_k600+k710_b16_f8x224/config.yaml", [text for pair in pairs.items() for text in pair]
    )
    torch.save(build_model(k710).state_dict(), folder / "k710.pth")


def shell(folder: Path, script: str) -> subprocess.CompletedProcess:
    """Run a script in a new shell in a folder, without the environment of this process."""
    environment = {"HOME": str(folder.parent), "PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8"}
    environment |= {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}  # in place of pip install -e .
    environment["SLOWFAST_HOME"] = str(folder / "home")  # contains a download
    command = ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", "-c", script]
    return subprocess.run(
        command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def page_script(page: str, folder: Path) -> str:
    """Return all blocks of a page as one script; a line that the page repeats runs once."""
    script, done = "", set()
    for number, (language, text) in enumerate(blocks(page)):
        script += f"echo '=== {page}, block {number}'\n"
        if language == "python" and text not in modules(page).values():
            (folder / f"block_{number}.py").write_text(text)
            script += f".venv/bin/python block_{number}.py\n"
        elif language == "bash":
            for line in commands(text):
                command = line.partition(" #")[0].strip()
                if command not in done and not line.startswith(tuple(NOT_RUN)):
                    script += f"{line}\n"
                done.add(command)
    return re.sub(r"(?<![\w./])/data\b", str(folder / "disk"), script)


@pytest.fixture(scope="module")
def demo(inputs, warm, made_once) -> Path:
    """Return a checkout with a trained demo, which some pages assume: that of `DEMO_PAGE`, whose runs draw pictures."""

    def train(folder: Path) -> None:
        make_checkout(folder / "checkout", inputs, warm, pictures="exp/demo/")
        done = shell(folder / "checkout", page_script(DEMO_PAGE, folder / "checkout"))
        assert done.returncode == 0, done.stdout[-8000:]

    return made_once("demo", train) / "checkout"


DEMO_PAGE = "INSTALL.md"
# Pages that assume the results of the first command of the README, or of the first one of DATASET.md.
AFTER_DEMO = tuple(
    f"docs/{name}.md"
    for name in ("EXPORT", "FEATURES", "FINETUNING", "MIGRATING", "PREDICT", "PROBE", "REPORT", "VISUALIZE")
)
AFTER_LISTS = ("MODEL_ZOO.md",)
# Files that the commands of a page write.
LEFT: dict[str, tuple[str, ...]] = {
    DEMO_PAGE: tuple(f"output/demo/{name}" for name in ("curves.png", "report.html", "test/metrics.json")),
    "README.md": ("output/demo/test/metrics.json", "output/lr5e-4/test/metrics.json"),
    "DATASET.md": ("disk/k400/check/report.csv", "output/uniformer_s16x4_k400/test/metrics.json"),
    "docs/OWN_VIDEOS.md": (
        "output/new.csv",
        *(f"output/{name}/test/predictions.csv" for name in ("mine", "mine_v2", "kinds")),
    ),
    "docs/EXTENDING.md": tuple(f"output/{name}/test/metrics.json" for name in ("extended", "student")),
    "docs/EXPORT.md": ("demo.onnx", "demo.pt2", "demo.safetensors", "shared/demo/README.md"),
    "docs/FEATURES.md": ("features/features.json", "features/test_00000.npy", "features_of_a_block/test_00000.npy"),
    "docs/PREDICT.md": ("predictions.csv", "predicted.mp4", "seen.png", "segments.png", "over_time.mp4"),
    "docs/VISUALIZE.md": ("inputs.png", "cam.mp4", "attention.mp4", "mixed.png", "cam.png"),
    "docs/PROBE.md": ("probes/probe.json", "probes/attentive.pt", "probes_of_windows/linear.pt"),
    "docs/REPORT.md": ("output/demo/report.html", "output/comparison.html", "output/comparison.csv"),
}


def modules(page: str) -> dict[str, str]:
    """Return path -> text of the blocks of Python that begin with a path, which are files and no scripts."""
    found = [(re.match(r"# (\S+\.py)\n", text), text) for language, text in blocks(page) if language == "python"]
    return {match[1]: text for match, text in found if match}


def new_parts_were_used(folder: Path) -> None:
    records = read_metrics(folder / "output/extended")
    assert all("mrr" in record for record in records if record["kind"] in ("train", "val"))
    extended = load_tensors(folder / "output/extended/checkpoints/best.pyth")
    assert "layers.0.weight" in extended["model_state"] and len(extended["model_state"]["head.weight"]) == 8
    assert '"mrr"' in (folder / "output/extended/test/metrics.json").read_text()
    cfg = load_config(folder / "output/student/resolved_config.yaml")
    student = load_tensors(folder / "output/student/checkpoints/best.pyth")["model_state"]
    assert cfg.MODEL.OPTIONS == ["teacher=output/extended"] and not any("teacher" in name for name in student)
    assert student["blocks3.0.attn.qkv.weight"].shape[1] == cfg.UNIFORMER.EMBED_DIM[2]


def scores_are_probabilities(folder: Path) -> None:
    with open(folder / "output/new/test/predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    with open(folder / "output/new.csv", newline="") as file:
        for row, other in zip(rows, csv.DictReader(file), strict=True):
            assert float(other["probability1"]) == pytest.approx(float(row["score1"]), abs=1e-3)
    assert len(rows) == 2
    for row in rows:
        scores = [float(row[f"score{k}"]) for k in range(1, 6)]
        assert 1 > scores[0] > 1 / 12 and sum(scores) < 1 and scores == sorted(scores, reverse=True)


def only_the_head_learned(folder: Path) -> None:
    start = load_tensors(folder / "start.pyth")["model_state"]
    other, head = (
        load_tensors(folder / f"output/{name}/checkpoints/best.pyth")["model_state"]
        for name in ("mine_new", "mine_head")
    )
    same = {name for name, value in head.items() if torch.equal(value, start[name])}
    assert set(head) - same == {"head.weight", "head.bias"}
    assert sum(not torch.equal(other[name], start[name]) for name in same) > 10


RESULTS: dict[str, Callable[[Path], None]] = {
    "docs/OWN_VIDEOS.md": scores_are_probabilities,
    "docs/FINETUNING.md": only_the_head_learned,
    "docs/EXTENDING.md": new_parts_were_used,
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [page for page in PAGES if any(kind in ("bash", "python") for kind, _ in blocks(page))]
)
def test_the_commands_of_a_page_run(page, inputs, warm, request, tmp_path):
    if page == DEMO_PAGE:
        trained: Path = request.getfixturevalue("demo")
        assert [name for name in LEFT[page] if not (trained / name).is_file()] == []
        return
    folder = tmp_path / "checkout"
    files = modules(page)
    make_checkout(folder, inputs, warm, fresh=bool(files))
    for name, text in files.items():
        (folder / name).write_text(text)
    if page in AFTER_DEMO:
        trained = request.getfixturevalue("demo")
        for name in ("data", "output"):
            shutil.copytree(trained / name, folder / name)
        shutil.copy(folder / "output/demo/checkpoints/best.pyth", folder / "start.pyth")  # it may be trained further
    elif page in AFTER_LISTS:
        done = shell(
            folder, page_script("DATASET.md", folder).partition("prepare_data.py check")[0].rpartition("\n")[0]
        )
        assert done.returncode == 0, done.stdout
    done = shell(folder, page_script(page, folder))
    assert done.returncode == 0, done.stdout[-8000:]
    assert [name for name in LEFT.get(page, ()) if not (folder / name).is_file()] == []
    if page in RESULTS:
        RESULTS[page](folder)


@pytest.mark.slow
def test_the_notebook_runs(demo, warm, tmp_path, monkeypatch):
    kernel = tmp_path / "jupyter/kernels/warm/kernel.json"
    kernel.parent.mkdir(parents=True)
    write_python(kernel.with_name("python"), warm)
    command = [str(kernel.with_name("python")), ipykernel_launcher.__file__, "-f", "{connection_file}"]
    kernel.write_text(json.dumps({"argv": command, "display_name": "warm", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    shutil.copytree(demo, tmp_path / "checkout", ignore=shutil.ignore_patterns(".*"))
    notebook = nbformat.read(tmp_path / "checkout/examples/quickstart.ipynb", as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code), "commit it without outputs"
    client = NotebookClient(
        notebook, timeout=300, kernel_name="warm", resources={"metadata": {"path": tmp_path / "checkout/examples"}}
    )
    client.execute(env={**os.environ, "PYTHONPATH": str(tmp_path / "checkout"), "OMP_NUM_THREADS": "1"})
    outputs = [output for cell in code for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3
    text = "".join(output.get("text", "") for output in outputs)
    assert all(f"test_{number:05d}.mp4" in text for number in range(8))
