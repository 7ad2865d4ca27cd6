"""slowfast-features: files, their content, and how an interrupted extraction continues."""

from __future__ import annotations

import importlib
import importlib.util
import json
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from run_fixtures import run_command

from slowfast.inference.command import names_of
from slowfast.inference.extract import Task, execute, parse_args
from slowfast.inference.stores import write_store
from slowfast.inference.windows import WindowCutter, join
from slowfast.utils.io import sha256

extract = partial(run_command, "extract")


@pytest.fixture(scope="module")
def paths(videos) -> list[Path]:
    return [videos / f"val_{i}.mp4" for i in range(3)]


def test_features_are_those_of_the_network_with_their_description(one_crop, trained, paths, tmp_path):
    options = ["--weights", trained, "--window", 16, "--out", tmp_path / "f"]
    assert extract(*paths, *options) == 0
    model: Any = one_crop.model
    about = json.loads((tmp_path / "f/features.json").read_text())
    assert (about["window"], about["stride"], about["layer"], about["clip"]) == (16, 4, "pooled", 4)
    assert about["sha256"] == sha256(one_crop.weights)
    for path in paths:
        found, windows = np.load(tmp_path / "f" / f"{path.stem}.npy"), [*WindowCutter(one_crop, str(path), 16, 4)]
        assert found.dtype == np.float32 and found.shape == (len(windows), 32)
        video = about["videos"][path.stem]
        assert video["windows"] == len(windows) == (video["frames"] - 16) // 4 + 1
        assert video["fps"] == pytest.approx(video["frames"] / video["seconds"], rel=1e-4)
        for row, window in zip(found, windows, strict=True):
            with torch.no_grad():
                clips = one_crop.transform_prepared([join([window])])
                expected = model.forward_head(model.forward_features(clips), pre_logits=True)[0]
            assert np.abs(row - expected.numpy()).max() < 1e-5


def test_a_repeated_command_makes_what_is_missing(trained, paths, tmp_path):
    command = [*paths, "--weights", trained, "--window", 8, "--stride", 8, "--out", tmp_path]
    assert extract(*command) == 0
    before = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in tmp_path.glob("*.npy")}
    (tmp_path / "val_1.npy").unlink()
    assert extract(*command) == 0
    after = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in tmp_path.glob("*.npy")}
    assert [name for name in before if before[name][0] != after[name][0]] == ["val_1.npy"]
    assert after["val_1.npy"][1] == before["val_1.npy"][1]


def test_other_settings_have_exit_code_2(trained, paths, tmp_path):
    command = [paths[0], "--weights", trained, "--window", 8]
    assert extract(*command, "--out", tmp_path / "f") == 0
    kept = (tmp_path / "f/val_0.npy").read_bytes()
    assert extract(*command, "--stride", 8, "--out", tmp_path / "f") == 2
    assert (tmp_path / "f/val_0.npy").read_bytes() == kept


@pytest.mark.parametrize(
    "other", [["TEST.NUM_ENSEMBLE_VIEWS", 1, "TEST.NUM_SPATIAL_CROPS", 3], ["DATA.MEAN", "[0.1,0.1,0.1]"]]
)
def test_other_views_or_inputs_have_exit_code_2(trained, paths, tmp_path, other):
    views = ["TEST.NUM_ENSEMBLE_VIEWS", 3, "TEST.NUM_SPATIAL_CROPS", 1]
    command = [paths[0], "--weights", trained, "--per-video", "--out", tmp_path / "f", "--opts", *views]
    assert extract(*command) == 0
    assert extract(*command) == 0
    kept = (tmp_path / "f/val_0.npy").read_bytes()
    assert extract(*(command[:-4] if len(other) == 4 else command), *other) == 2
    assert (tmp_path / "f/val_0.npy").read_bytes() == kept


def test_windows_do_not_depend_on_the_views_of_a_test(trained, paths, tmp_path):
    command = [paths[0], "--weights", trained, "--window", 8, "--out", tmp_path]
    other = ["--opts", "TEST.NUM_ENSEMBLE_VIEWS", 3, "DATA.SAMPLING_RATE", 2]
    assert extract(*command) == 0
    assert extract(paths[0], "--weights", trained, "--per-video", "--out", tmp_path) == 2
    kept = np.load(tmp_path / "val_0.npy")
    assert extract(*command, *other) == 0
    (tmp_path / "val_0.npy").unlink()
    assert extract(*command, *other) == 0 and np.array_equal(np.load(tmp_path / "val_0.npy"), kept)


def test_a_setting_that_a_folder_does_not_contain_differs(trained, paths, tmp_path, capsys):
    command = [paths[0], "--weights", trained, "--window", 8, "--out", tmp_path]
    assert extract(*command) == 0
    about = json.loads((tmp_path / "features.json").read_text())
    del about["DATA.MEAN"]
    (tmp_path / "features.json").write_text(json.dumps(about))
    capsys.readouterr()
    assert extract(*command) == 2
    error = capsys.readouterr().err
    assert "DATA.MEAN" in error and "DATA.STD" not in error


def test_features_of_another_size_of_the_frames_are_others(trained, paths, tmp_path):
    """With one crop, the first value of DATA.TRAIN_JITTER_SCALES is the short side of the frames."""
    command = ["--weights", trained, "--window", 8, "--out"]
    other = ["--opts", "DATA.TRAIN_JITTER_SCALES", "[48, 64]", "TEST.DATASET", "kinetics"]
    assert extract(paths[0], *command, tmp_path / "a", "--opts", "TEST.DATASET", "kinetics") == 0
    assert extract(paths[0], *command, tmp_path / "b", *other) == 0
    first, second = (np.load(tmp_path / folder / "val_0.npy") for folder in "ab")
    assert not np.allclose(first, second, rtol=1e-3)
    assert extract(paths[1], *command, tmp_path / "a", *other) == 2


def test_a_relative_path_is_that_of_the_folder_in_which_the_features_were_made(trained, paths, tmp_path, monkeypatch):
    for folder, path in zip("ab", paths, strict=False):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same.mp4").write_bytes(path.read_bytes())
    command = ["--weights", trained, "--window", 8, "--out", tmp_path / "f"]
    monkeypatch.chdir(tmp_path / "a")
    assert extract("same.mp4", *command) == 0
    written = (tmp_path / "f/same.npy").stat().st_mtime_ns
    monkeypatch.chdir(tmp_path / "b")
    assert extract("same.mp4", *command) == 2  # another video
    assert extract("../a/same.mp4", *command) == 0
    assert (tmp_path / "f/same.npy").stat().st_mtime_ns == written


def test_another_video_of_the_same_name_has_exit_code_2(trained, paths, tmp_path):
    copies = [tmp_path / folder / "same.mp4" for folder in ("a", "b")]
    for path, copy in zip(paths, copies, strict=False):
        copy.parent.mkdir()
        copy.write_bytes(path.read_bytes())
    command = ["--weights", trained, "--window", 8, "--out", tmp_path / "f"]
    assert extract(copies[0], *command) == 0
    kept = (tmp_path / "f/same.npy").read_bytes()
    assert extract(copies[1], *command) == 2 and (tmp_path / "f/same.npy").read_bytes() == kept
    assert json.loads((tmp_path / "f/features.json").read_text())["videos"]["same"]["path"] == str(copies[0])
    assert extract(*copies, *command) == 0 and (tmp_path / "f/b/same.npy").is_file()


def test_unreadable_videos_are_left_out(trained, paths, tmp_path, capsys):
    broken = tmp_path / "broken.mp4"
    broken.write_text("no video")
    assert extract(broken, paths[0], "--weights", trained, "--out", tmp_path / "f") == 1
    assert str(broken) in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "f").rglob("*.npy")] == ["val_0.npy"]


def test_per_video_is_the_mean_over_the_views_of_a_test(net, trained, paths, tmp_path):
    assert extract(paths[0], "--weights", trained, "--per-video", "--layer", "norm", "--out", tmp_path) == 0
    assert np.array_equal(np.load(tmp_path / "val_0.npy"), net.features(str(paths[0]), "norm").values)


def test_tokens_are_those_whose_mean_is_the_feature(net, trained, paths, tmp_path):
    common = [*paths, "--weights", trained, "--layer", "norm", "--per-video", "--out"]
    assert extract(*common, tmp_path / "one") == 0 == extract(*common, tmp_path / "all", "--tokens")
    for path in paths:
        mean, tokens = (np.load(tmp_path / folder / f"{path.stem}.npy") for folder in ("one", "all"))
        assert len(tokens) > net.num_views and len(tokens) % net.num_views == 0
        assert np.abs(tokens.mean(0) - mean).max() < 1e-5
    assert extract(*common, tmp_path / "one", "--tokens") == 2


@pytest.mark.parametrize(("kind", "library"), [("hdf5", "h5py"), ("parquet", "pyarrow")])
def test_one_file_contains_all_videos_or_names_the_missing_package(trained, paths, tmp_path, capsys, kind, library):
    code = extract(*paths, "--weights", trained, "--window", 8, "--out", tmp_path, "--format", kind)
    if importlib.util.find_spec(library) is None:
        assert code == 2 and library in capsys.readouterr().err and not any(tmp_path.iterdir())
        return
    assert code == 0
    arrays = {path.stem: np.load(path) for path in tmp_path.glob("*.npy")}
    if kind == "hdf5":
        with importlib.import_module("h5py").File(tmp_path / "features.h5") as file:
            assert {name: value.shape for name, value in file.items()} == {n: a.shape for n, a in arrays.items()}
            assert all(np.array_equal(file[name][:], array) for name, array in arrays.items())
            assert file["val_0"].attrs["windows"] == len(arrays["val_0"]) and file.attrs["window"] == 8
    else:
        table = importlib.import_module("pyarrow.parquet").read_table(tmp_path / "features.parquet")
        assert table.num_rows == sum(len(array) for array in arrays.values())
        assert np.array_equal(table["features"][0].as_py(), arrays["val_0"][0].tolist())


def test_videos_beside_folders_of_the_same_name_are_in_one_file(tmp_path):
    library = pytest.importorskip("h5py")
    videos = {"a": "/v/a.mp4", "a/b": "/v/a/b", "a/b/c": "/v/a/b/c.mp4", "d": "/v/d.mp4"}
    for number, name in enumerate(videos):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(tmp_path / f"{name}.npy", np.full((2, 3), number, np.float32))
    write_store("hdf5", tmp_path, {"videos": {name: {"path": path} for name, path in videos.items()}})
    with library.File(tmp_path / "features.h5") as file:
        for number, name in enumerate(["a.mp4", "a/b.frames", "a/b/c", "d"]):
            assert file[name][0, 0] == number and file[name].attrs["path"] == [*videos.values()][number]


@pytest.mark.slow
def test_processes_write_the_same_features_and_report_more_bad_videos_than_a_pipe_holds(
    trained, paths, forks, tmp_path, capsys
):
    bad = [tmp_path / ("long_name_" * 15 + f"{number}.mp4") for number in range(600)]
    for path in bad:
        path.write_bytes(b"no video")
    command = ["--weights", trained, "--window", 8]
    assert extract(*paths, *command, "--out", tmp_path / "1") == 0
    assert extract(*paths, *bad, *command, "--out", tmp_path / "2", "--processes", 2) == 1
    assert capsys.readouterr().err.count("long_name_" * 15) >= len(bad)
    for path in paths:
        (one,), (two,) = ([*(tmp_path / name).rglob(f"{path.stem}.npy")] for name in "12")
        assert np.allclose(np.load(one), np.load(two), atol=1e-6)


def test_tasks_of_an_array_share_the_videos(trained, paths, tmp_path, monkeypatch):
    args = parse_args([*map(str, paths), "--weights", str(trained), "--window", "8", "--out", str(tmp_path / "f")])
    assert execute(args) == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "f").glob("*.npy")}
    for path in (tmp_path / "f").glob("*.npy"):
        path.unlink()
    task = Task(args, names_of([str(path) for path in paths]), 2)
    assert task(0) == 0
    assert {path.name for path in (tmp_path / "f").glob("*.npy")} == {"val_0.npy", "val_2.npy"}
    assert task(1) == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "f").glob("*.npy")} == before
    monkeypatch.setenv("PATH", str(tmp_path))
    command = [paths[0], "--weights", trained, "--out", tmp_path / "g", "--slurm", 2]
    assert extract(*command) == 2


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "library"), [("hdf5", "h5py"), ("parquet", "pyarrow.parquet")])
def test_one_file_of_an_array_is_written_when_no_task_is_left(trained, paths, tmp_path, kind, library):
    reader = pytest.importorskip(library)
    options = ["--weights", str(trained), "--window", "8", "--format", kind, "--out", str(tmp_path)]
    folder = tmp_path / "videos"
    folder.mkdir()
    links = [folder / path.name for path in paths]
    for link, path in zip(links, paths, strict=True):
        link.symlink_to(path)
    (folder / "broken.mp4").write_text("no video")  # never finished
    args = parse_args([str(folder), *options])
    task = Task(args, names_of([*map(str, links), str(folder / "broken.mp4")]), 4)
    names = [name for name in task.names if "broken" not in name]
    assert extract(links[0], *options[:4], "--out", tmp_path) == 0
    assert task(1) == 0
    assert not [*tmp_path.glob("features.[hp]*")]
    context = get_context("fork")
    processes = [context.Process(target=task, args=(part,)) for part in (0, 2, 3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    about = json.loads((tmp_path / "features.json").read_text())
    assert [*about["videos"]] == sorted(names) and len(names) == 3
    if kind == "hdf5":
        with reader.File(tmp_path / "features.h5") as file:
            found = {name: file[name][:] for name in names}
    else:
        rows = reader.read_table(tmp_path / "features.parquet").to_pylist()
        found = {name: [row["features"] for row in rows if row["video"] == name] for name in names}
    assert all(np.array_equal(found[name], np.load(tmp_path / f"{name}.npy")) for name in names)


def test_names_are_unique_below_the_common_folder():
    assert [*names_of(["/v/a/1.mp4", "/v/b/1.mp4", "/v/2.mp4", "/v/2.avi"])] == ["a/1", "b/1", "2.mp4", "2.avi"]
    assert len(names_of(["/v/a.mp4", "/v/a.avi", "/v/a.mp4.mkv"])) == 3
