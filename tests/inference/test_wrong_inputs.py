"""Wrong inputs of the console commands: one line, exit code 2, and nothing lost."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
import torch

from slowfast import commands
from slowfast.weights.tensors import load_tensors

OVERRIDE_RIGHTS = 0b110  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH of Linux


@pytest.fixture(scope="module")
def given(trained, videos, tmp_path_factory) -> SimpleNamespace:
    """Return right and wrong inputs."""
    folder: Path = tmp_path_factory.mktemp("given")
    sound, empty, nameless = folder / "sound.wav", folder / "empty", folder / "nameless.pyth"
    with av.open(str(sound), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))  # pyright: ignore
    empty.mkdir()
    broken, blank = folder / "broken.mp4", folder / "blank.txt"
    broken.write_text("no video")
    blank.write_text("\n")
    checkpoint = load_tensors(trained / "checkpoints/best.pyth")
    torch.save({**checkpoint, "class_names": None}, nameless)
    lists = {"list": folder / "list.csv", "sounds": folder / "sounds.csv"}
    lists["list"].write_text(f"{videos / 'val_0.mp4'},0\n{videos / 'val_1.mp4'},1\n")
    lists["sounds"].write_text(f"{sound},0\n")
    video = videos / "val_0.mp4"
    wrong = {"sound": sound, "empty": empty, "broken": broken, "blank": blank, "missing": folder / "missing"}
    wrong["link"] = folder / "link.mp4"
    wrong["link"].symlink_to(folder / "missing")
    return SimpleNamespace(net=trained, video=video, nameless=nameless, **wrong, **lists)


@pytest.fixture
def locked(tmp_path) -> Iterator[Path]:
    """Return a folder in which this process cannot write, even if it is root's."""
    folder = tmp_path / "locked"
    folder.mkdir()
    (folder / "kept").write_text("kept")
    folder.chmod(0o500)
    library = ctypes.CDLL(None, use_errno=True)
    thread, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert library.capget(thread, sets) == 0
    rights = sets[0]
    sets[0] = rights & ~OVERRIDE_RIGHTS
    assert library.capset(thread, sets) == 0
    yield folder
    sets[0] = rights
    assert library.capset(thread, sets) == 0
    folder.chmod(0o700)
    assert [path.name for path in folder.iterdir()] == ["kept"]


def run(monkeypatch: pytest.MonkeyPatch, command: str, *arguments: object) -> int:
    """Run a console command with these arguments in this process; return its exit code."""
    monkeypatch.setattr(sys, "argv", [f"slowfast-{command}", *map(str, arguments)])
    monkeypatch.setattr(sys, "path", [*sys.path])
    try:
        return getattr(commands, command)()
    except SystemExit as error:
        assert isinstance(error.code, int)
        return error.code


def only_error(capsys: pytest.CaptureFixture[str]) -> str:
    """Return the error, which must be the only line of its kind."""
    text = capsys.readouterr().err
    assert "Traceback" not in text
    lines = [line for line in text.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and text.rstrip().splitlines()[-1] == lines[0], text
    return lines[0]


# Command -> arguments; WRONG is replaced by the wrong input, names of `given` by right ones, OUT by a folder.
INPUTS: dict[str, list[str]] = {
    "predict": ["WRONG", "--weights", "net", "--csv", "OUT/a.csv"],
    "features": ["WRONG", "--weights", "net", "--out", "OUT"],
    "probe": ["WRONG", "--val", "list", "--weights", "net", "--out", "OUT"],
    "visualize": ["cam", "WRONG", "--weights", "net", "--out", "OUT/a.png"],
    "export": ["WRONG", "--format", "safetensors", "--out", "OUT/a.safetensors"],
    "report": ["WRONG", "--out", "OUT/a.html"],
}
SOURCES: dict[str, list[str]] = {
    "predict": ["video", "--weights", "WRONG", "--csv", "OUT/a.csv"],
    "features": ["video", "--weights", "WRONG", "--out", "OUT"],
    "probe": ["list", "--val", "list", "--weights", "WRONG", "--out", "OUT"],
    "visualize": ["attention", "video", "--weights", "WRONG", "--out", "OUT/a.png"],
}
LAYERS: dict[str, list[str]] = {
    "features": ["video", "--weights", "net", "--out", "OUT", "--layer", "WRONG"],
    "probe": ["list", "--val", "list", "--weights", "net", "--out", "OUT", "--layer", "WRONG"],
    "visualize": ["cam", "video", "--weights", "net", "--out", "OUT/a.png", "--layer", "WRONG"],
}
PLACES: dict[str, list[str]] = {
    "predict": ["video", "--weights", "net", "--csv", "WRONG/a.csv"],
    "features": ["video", "--weights", "net", "--out", "WRONG/features"],
    "probe": ["list", "--val", "list", "--weights", "net", "--out", "WRONG/probe"],
    "visualize": ["cam", "video", "--weights", "net", "--out", "WRONG/a.png"],
    "export": ["net", "--format", "safetensors", "--out", "WRONG/a.safetensors"],
    "report": ["net", "--out", "WRONG/a.html"],
}


# Command and arguments.
OTHERS = [
    ("predict", "blank --weights net --csv OUT/a.csv"),
    ("predict", "missing --weights net --csv OUT/a.csv"),
    ("predict", "OUT/*.mkv --weights net --csv OUT/a.csv"),
    ("predict", "video --weights net --video video"),
    ("predict", "list --weights net --video OUT/a.mp4"),
    ("predict", "video --weights missing --csv OUT/a.csv"),
    ("predict", "video --weights net --csv OUT/a.csv --opts TEST.NUM_VIEWS 1"),
    ("predict", "video --weights net --csv OUT/a.csv --device cuda:99"),
    ("predict", "video --weights net --csv OUT/a.csv --device gpu"),
    ("predict", "/dev/null --weights net --csv OUT/a.csv"),
    ("predict", "link --weights net --csv OUT/a.csv"),
    ("probe", "list --val list --weights net --out OUT --device gpu"),
    ("features", "broken --weights net --out OUT/f"),
    ("visualize", "cam broken --weights net --out OUT/a.mp4"),
    ("visualize", "cam missing --weights net --out OUT/a.png"),
    ("visualize", "cam video --weights net --out OUT/a.gif"),
    ("visualize", "cam video --weights net --out OUT/a.mp4 --layer head"),
    ("visualize", "cam video --weights net --out OUT/a.png --class growing"),
    ("visualize", "cam video --weights net --out OUT/a.png --class 8"),
    ("export", "missing --format onnx --out OUT/a.onnx"),
    ("export", "net --format onnx --out OUT/a.pt"),
]


def filled(arguments: list[str], given: SimpleNamespace, wrong: object, out: Path) -> list[Any]:
    texts = [argument.replace("WRONG", str(wrong)).replace("OUT", str(out)) for argument in arguments]
    return [getattr(given, text, text) for text in texts]


def files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.name != "features.json"]


@pytest.mark.parametrize("wrong", ["sound", "empty"])
@pytest.mark.parametrize(
    ("command", "arguments"),
    [*INPUTS.items(), *SOURCES.items()],
    ids=[*INPUTS, *(f"{name}-weights" for name in SOURCES)],
)
def test_a_sound_or_an_empty_folder_is_refused(command, arguments, wrong, given, tmp_path, monkeypatch, capsys):
    before = given.sound.read_bytes()
    bad = getattr(given, wrong)
    assert run(monkeypatch, command, *filled(arguments, given, bad, tmp_path)) == 2
    assert str(bad) in only_error(capsys)
    assert given.sound.read_bytes() == before and not [*given.empty.iterdir()]
    assert files_below(tmp_path) == []


@pytest.mark.parametrize(("command", "arguments"), OTHERS)
def test_a_wrong_input_is_one_error_and_writes_nothing(command, arguments, given, tmp_path, monkeypatch, capsys):
    before = given.video.read_bytes()
    assert run(monkeypatch, command, *filled(arguments.split(), given, "", tmp_path)) == 2
    only_error(capsys)
    assert given.video.read_bytes() == before and files_below(tmp_path) == []


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("predict", "--segments a.json"),
        ("predict", "--batch 4"),
        ("predict", "--window nan"),
        ("predict", "--window inf"),
        ("predict", "--window 1 --csv a.csv"),
        ("predict", "--window 1 --json a.json"),
        ("predict", "--window 1 --top 3"),
        ("features", "--out OUT --per-video --crops 3"),
        ("features", "--out OUT --partition P"),
    ],
)
def test_an_option_without_effect_is_refused(command, options, given, tmp_path, monkeypatch, capsys):
    options = filled(options.split(), given, "", tmp_path)
    assert run(monkeypatch, command, given.video, "--weights", given.net, *options) == 2
    assert only_error(capsys).endswith(f"(slowfast-{command} --help lists the options)")


@pytest.mark.parametrize("command", ["predict", "features", "probe"])
def test_a_list_of_sounds_is_refused(command, given, tmp_path, monkeypatch, capsys):
    assert run(monkeypatch, command, *filled(INPUTS[command], given, given.sounds, tmp_path)) == 2
    assert str(given.sound) in only_error(capsys)
    assert not {"a.csv", "probe.json"} & {path.name for path in files_below(tmp_path)}


@pytest.mark.parametrize("kind", ["video", "window"])
def test_predictions_need_class_names(kind, given, tmp_path, monkeypatch, capsys):
    windows = ["--window", "0.5", "--segments", tmp_path / "a.json"]
    written = windows if kind == "window" else ["--csv", tmp_path / "a.csv"]
    command = [given.video, "--weights", given.nameless, *written]
    assert run(monkeypatch, "predict", *command) == 2
    assert "--class-names" in only_error(capsys)
    assert [*tmp_path.iterdir()] == []
    names = tmp_path / "names.txt"
    names.write_text("".join(f"name {number}\n" for number in range(8)))
    assert run(monkeypatch, "predict", *command, "--class-names", names) == 0
    assert "name " in capsys.readouterr().out


@pytest.mark.parametrize("count", [3, 7, 9])
@pytest.mark.parametrize("weights", ["net", "nameless"])
def test_class_names_of_another_number_are_refused(weights, count, given, tmp_path, monkeypatch, capsys):
    names = tmp_path / "names.txt"
    names.write_text("".join(f"name {number}\n" for number in range(count)))
    command = [given.video, "--weights", getattr(given, weights), "--class-names", names]
    assert run(monkeypatch, "predict", *command) == 2
    error = only_error(capsys)
    assert f"{count} class names" in error and "8 classes" in error and " list" not in error


@pytest.mark.parametrize("command", LAYERS)
def test_an_unknown_layer_is_answered_by_near_names(command, given, tmp_path, monkeypatch, capsys):
    assert run(monkeypatch, command, *filled(LAYERS[command], given, "block3.0", tmp_path)) == 2
    assert "blocks3.0" in only_error(capsys)
    assert files_below(tmp_path) == []


@pytest.mark.parametrize("command", PLACES)
def test_a_folder_without_permission_is_an_error_at_once(command, given, locked, tmp_path, monkeypatch, capsys):
    assert run(monkeypatch, command, *filled(PLACES[command], given, locked, tmp_path)) == 2
    assert str(locked) in only_error(capsys)
