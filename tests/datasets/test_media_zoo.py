"""Test odd and broken files of every kind with every backend and with the loader; the files are made here."""

from __future__ import annotations

import gc
import os
import re
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from av.stream import Disposition
from media_zoo import BROKEN, LATE, ODD, assert_same_pixels, assert_single_frames, h264, numbers, upright
from torch.utils.data import DataLoader

from slowfast.datasets import decode
from slowfast.datasets.batches import EpochBatchSampler
from slowfast.datasets.dataset import TrainDataset, VideoEvalDataset, VideoReader, as_made
from slowfast.datasets.guarded import read_frames_within
from slowfast.datasets.lists import VideoList
from slowfast.datasets.reader import MediaError, read_frames
from slowfast.datasets.sampling import SparseSampler
from slowfast.datasets.transforms import TrainTransform
from slowfast.datasets.workers import start_worker
from slowfast.prepare.check import check_media
from slowfast.prepare.reencode import Settings, reencode


@pytest.fixture(scope="module")
def zoo(made_once) -> Path:
    return made_once("zoo", make_zoo)


def make_zoo(folder: Path) -> None:
    for name, (make, _) in {**ODD, **BROKEN}.items():
        h264(folder / name, **make) if isinstance(make, dict) else make(folder / name)


@pytest.mark.parametrize("name", ODD)
def test_odd_files_give_the_same_frames_from_every_backend(zoo, name, backend):
    count = ODD[name][1]
    first = 24 - count if name in LATE else 0
    wanted = np.random.default_rng(0).integers(0, count, 6).tolist()  # in any order, with repeats
    reference = read_frames(str(zoo / name), range, backend="pyav")
    for indices in (list(range(count)), wanted):
        asked = []

        def choose(length: int, indices: list[int] = indices, asked: list[int] = asked) -> list[int]:
            asked.append(length)
            return indices

        frames = read_frames(str(zoo / name), choose, backend=backend)
        assert frames.dtype == np.uint8 and frames.flags.c_contiguous and frames.flags.writeable
        assert_same_pixels(frames, reference[indices], backend)
        assert asked[-1] == count
        shown = upright(name, reference[indices])  # neighbouring frames differ by more than backends do
        assert numbers(shown) == [first + index for index in indices]
        if name not in ("grey.mp4", "animation.gif"):
            height, width = shown.shape[1:3]
            corner = shown[:, : height * 3 // 8, : width * 3 // 8].astype(int)
            assert (corner[..., 0] - corner[..., 2]).mean() > 15  # red is up and left in every rotation


@pytest.mark.parametrize("name", ODD)
def test_every_single_frame_equals_that_of_a_full_decode(zoo, name, backend):
    path, count = str(zoo / name), ODD[name][1]
    with av.open(path) as container:
        stream = decode.video_stream(path, container)
        shown = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    assert_single_frames(path, shown, count, backend, lambda frame: upright(name, frame[None])[0])


def test_a_cover_picture_is_neither_reported_nor_copied(zoo, tmp_path):
    with av.open(str(zoo / "cover_first.mp4")) as container:
        assert container.streams.video[0].disposition & Disposition.attached_pic
    (row,) = check_media(zoo, {"cover_first.mp4": None}, tmp_path / "out", workers=1, timeout=30)
    assert (row.frames, row.width, row.codec, row.fps) == (24, 64, "h264", 25.0)
    assert not reencode(zoo, ["cover_first.mp4"], tmp_path / "copies", Settings(), workers=1, timeout=30)
    copies = read_frames(str(tmp_path / "copies/cover_first.mp4"), range)
    assert numbers(copies) == list(range(24))


@pytest.mark.parametrize("name", [name for name in ODD if name.startswith(("rotated", "mirrored"))])
def test_copies_are_upright(zoo, tmp_path, name):
    reencode(zoo, [name], tmp_path, Settings(), workers=1, timeout=30)
    before, after = read_frames(str(zoo / name), range), read_frames(str(tmp_path / name), range)
    assert before.shape == after.shape and np.abs(before.astype(int) - after).mean() < 4
    with av.open(str(tmp_path / name)) as container:
        assert next(container.decode(video=0)).side_data.get("DISPLAYMATRIX") is None


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_named_with_the_same_reason_by_every_backend(zoo, name, backend):
    path, reason = str(zoo / name), BROKEN[name][1]
    limit = 1 if name == "pipe.mp4" else 60
    with pytest.raises(MediaError, match=reason) as caught:
        read_frames_within(limit, path, lambda length: range(length), backend=backend)
    assert caught.value.path == path
    if name != "pipe.mp4":  # a read of it would never end
        with pytest.raises(MediaError) as here:
            read_frames(path, lambda length: range(length), backend=backend)
        assert here.value.reason == caught.value.reason


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can become somebody else")
def test_the_error_names_a_file_without_read_permission(tmp_path):
    path = tmp_path / "private.mp4"
    h264(path)
    path.chmod(0)
    os.seteuid(65534)
    try:
        with pytest.raises(MediaError, match="Permission denied"):
            read_frames(str(path), lambda length: range(length))
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("name", ["rotated_90.mp4", "width_72.mp4"])
def test_a_file_that_decord_cannot_read_is_logged_once_and_leaves_no_reader(zoo, name, caplog, monkeypatch):
    """A reader that is freed in a forked worker waits for threads that do not exist there, or aborts."""
    decord = pytest.importorskip("decord")
    monkeypatch.setattr(decode, "_LOGGED", set())
    gc.collect()
    gc.disable()
    try:
        with caplog.at_level("INFO", logger="slowfast"):
            for _ in range(2):
                read_frames(str(zoo / name), lambda length: [length - 1], backend="decord")
        assert not [thing for thing in gc.get_objects() if type(thing) is decord.VideoReader]
    finally:
        gc.enable()
    assert [name in record.getMessage() for record in caplog.records] == [True]


def loader(zoo: Path, workers: int, context: str | None, transform: TrainTransform | None) -> DataLoader:
    names = [*ODD, *BROKEN]
    samples = VideoList([str(zoo / name) for name in names], range(len(names)))
    reader = VideoReader(SparseSampler(4), decode_timeout=3)
    if transform is None:
        dataset = VideoEvalDataset(samples, reader, num_crops=3, scale=32, crop=32)
    else:
        dataset = TrainDataset(samples, reader, transform)
    sampler = EpochBatchSampler(len(names), 8, train=transform is not None)
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        collate_fn=as_made,
        num_workers=workers,
        multiprocessing_context=context,
        worker_init_fn=start_worker,
    )


@pytest.mark.slow
@pytest.mark.parametrize(("training", "context"), [(True, "spawn"), (False, "fork")])
def test_the_loader_handles_the_zoo_alike_with_and_without_workers(zoo, training, context):
    transform = TrainTransform(32, (32, 40), flip=False) if training else None
    here, there = list(loader(zoo, 0, None, transform)), list(loader(zoo, 2, context, transform))
    for expected, batch in zip(here, there, strict=True):
        clips = [[*(item["video"] if training else item["video"].cut())] for item in (expected, batch)]
        assert all(torch.equal(a, b) for a, b in zip(*clips, strict=True))
        assert torch.equal(expected["index"], batch["index"])
        assert expected["bad"] == batch["bad"]
    bad = {Path(path).name: reason for batch in here for path, reason in batch["bad"]}
    reasons = {name: reason for name, (_, reason) in BROKEN.items() if name in bad or not training}
    reasons["pipe.mp4"] = "longer than 3 s"
    assert set(bad) == set(reasons) and all(re.search(reasons[name], bad[name]) for name in bad)
    rows = [row for batch in here for row in batch["index"].tolist()]
    if training:
        used = {[*ODD, *BROKEN][row] for row in rows}
        # a clip may be drawn from the frames before the damage
        assert len(rows) == 8 * len(here) and used <= {*ODD, "frames_cut_off.mp4", "garbage_in_the_middle.mp4"}
    else:
        assert rows == [row for row in range(len(ODD)) for _ in range(3)]
