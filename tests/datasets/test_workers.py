"""Test that loading continues after the system kills a worker."""

from __future__ import annotations

import copy
import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

import av
import pytest
import torch
from torch.utils.data import get_worker_info
from torch.utils.data._utils import signal_handling

from slowfast.datasets import shared, workers
from slowfast.datasets.batches import EpochBatchSampler
from slowfast.datasets.dataset import ClipDataset, TrainDataset, VideoEvalDataset, VideoReader
from slowfast.datasets.lists import read_list
from slowfast.datasets.sampling import SparseSampler
from slowfast.datasets.transforms import TrainTransform
from slowfast.datasets.workers import VideoLoader

ROOT = Path(__file__).parents[2]
ROWS = 12
KILLER = 5


class Killing(VideoReader):
    """A reader whose worker the system kills at some rows, because they need too much memory."""

    rows = (KILLER,)

    def read(self, sample, choose):
        frames = super().read(sample, choose)
        if sample.label in self.rows and get_worker_info():  # labels are rows
            os.kill(os.getpid(), signal.SIGKILL)
        return frames


@pytest.fixture(scope="module")
def folder(tmp_path_factory, write_video):
    folder = tmp_path_factory.mktemp("killed")
    for row in range(ROWS):
        write_video(folder / f"{row}.mp4", frames=10 + row)
    (folder / "list.csv").write_text("".join(f"{row}.mp4 {row}\n" for row in range(ROWS)))
    return folder


def dataset(folder, kind: type[VideoReader], train: bool) -> ClipDataset:
    samples = read_list(folder / "list.csv", prefix=str(folder), num_classes=ROWS)
    reader = kind(SparseSampler(4))
    if train:
        return TrainDataset(samples, reader, TrainTransform(crop=32, jitter_scales=(32, 40), flip=False))
    return VideoEvalDataset(samples, reader, crop=32, scale=32)


def loader(data, train: bool, count: int = 2) -> VideoLoader:
    sampler = EpochBatchSampler(ROWS, 2, train=train)
    return VideoLoader(data, sampler, count)


@pytest.mark.parametrize("train", [True, False])
def test_a_video_that_kills_its_worker_is_left_out(train, folder, monkeypatch):
    """The video counts as broken, and the batches after it are those of an undisturbed epoch."""
    monkeypatch.setattr(signal_handling, "_SIGCHLD_handler_set", False)
    signal_handling._set_SIGCHLD_handler()  # as another loader of PyTorch in this process does
    expected_data = dataset(folder, VideoReader, train)
    expected_data.killed[KILLER] = "known"
    data = dataset(folder, Killing, train)
    killed, expected = loader(data, train), loader(expected_data, train, count=0)
    for epoch in (0, 1):
        for each in (killed, expected):
            each.batch_sampler.set_position(epoch, 0)  # pyright: ignore
        batches = []
        for batch in killed:
            time.sleep(0.01)  # the death of a worker only affects the process that waits for a batch
            batches.append(batch)
        for batch, other in zip(batches, expected, strict=True):
            assert batch["index"].tolist() == other["index"].tolist()
            assert batch["label"].tolist() == other["label"].tolist()
            assert [path for path, _ in batch["bad"]] == [path for path, _ in other["bad"]]
            if train:
                assert torch.equal(batch["video"], other["video"])
        assert (killed.batch_sampler.epoch, killed.batch_sampler.batch) == (epoch, 0)  # pyright: ignore
    assert signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL
    assert list(data.killed) == [KILLER]
    size = os.path.getsize(folder / f"{KILLER}.mp4")
    assert f"{size:,} bytes" in data.killed[KILLER] and "number of workers" in data.killed[KILLER]


class Vanishing(Killing):
    """A reader whose worker is killed so that its connections end before the worker exits."""

    def read(self, sample, choose):
        if sample.label in self.rows and get_worker_info():
            time.sleep(0.2)  # the batch before is in the queue, its memory is not fetched
            for block in shared._blocks:
                os.close(block.file)
            time.sleep(0.5)
        return super().read(sample, choose)


def test_a_worker_may_be_killed_while_it_sends_a_batch(folder):
    data = dataset(folder, Vanishing, train=False)
    labels = []
    for batch in loader(data, train=False, count=1):
        labels += batch["label"].tolist()
        time.sleep(0.3)
    assert labels == [row for row in range(ROWS) if row != KILLER] and list(data.killed) == [KILLER]


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="batches go through sockets in the temporary folder")
def test_workers_need_no_temporary_folder(folder, monkeypatch):
    """A job that cleans /tmp at night must not end a training."""
    monkeypatch.setattr(tempfile, "tempdir", str(folder / "removed"))
    monkeypatch.delitem(multiprocessing.current_process()._config, "tempdir", raising=False)  # pyright: ignore
    data = dataset(folder, VideoReader, train=False)
    assert sum(len(batch["label"]) for batch in loader(data, train=False)) == ROWS
    assert "tempdir" not in multiprocessing.current_process()._config  # pyright: ignore


OPENS = "import os; from slowfast.datasets.shared import opens_files; os.wait() if os.fork() else print(opens_files())"
SANDBOX = ("unshare", "--user", "--map-root-user", "--pid", "--fork")  # whose /proc is that of the system


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="files of a process are listed on Linux")
def test_files_are_opened_only_through_the_own_proc():
    def opens(*prefix):
        done = subprocess.run([*prefix, sys.executable, "-c", OPENS], cwd=ROOT, capture_output=True, text=True)
        return done.stdout.strip() or pytest.skip(f"the system allows no sandbox: {done.stderr}")

    assert opens() == "True"
    assert opens(*SANDBOX) == "False"


def test_a_system_may_hide_the_files_of_a_process(folder, monkeypatch):
    monkeypatch.setattr(shared, "opens_files", lambda: False)  # in the workers too, which are forks
    data = dataset(folder, VideoReader, train=False)
    assert sum(len(batch["label"]) for batch in loader(data, train=False)) == ROWS


def test_loaders_leave_their_data_set_as_it_is(folder):
    """It can be copied, and a second loader with fewer workers does not affect the first one."""
    data = dataset(folder, Killing, train=False)
    first = loader(data, train=False, count=3)
    loader(data, train=False, count=0)
    assert copy.deepcopy(data).seed == data.seed and data.reading is None
    labels = [label for batch in first for label in batch["label"].tolist()]
    assert labels == [row for row in range(ROWS) if row != KILLER] and list(data.killed) == [KILLER]


@pytest.mark.timeout(100)
def test_a_worker_does_not_collect_decoders_of_the_process_that_started_it(folder):
    """A decoder with threads that is freed in a fork blocks for ever, because the fork does not have its threads."""

    class Collecting(VideoReader):
        def read(self, sample, choose):
            gc.collect()
            return super().read(sample, choose)

    gc.collect()
    gc.disable()
    try:
        container = av.open(str(folder / "0.mp4"))
        stream = container.streams.video[0]
        stream.thread_type, stream.codec_context.thread_count = "FRAME", 2
        cycle: list[object] = [container, next(container.decode(stream))]
        cycle.append(cycle)
        del container, stream, cycle
        assert len(list(loader(dataset(folder, Collecting, train=False), train=False, count=1))) == ROWS // 2
    finally:
        gc.enable()
        gc.collect()  # otherwise the worker of another test, which is not prepared for it, may collect the decoder


@pytest.mark.slow
def test_a_worker_may_be_killed_between_two_epochs(folder):
    data = dataset(folder, VideoReader, train=True)
    killed = loader(data, train=True, count=1)
    first = [batch["label"].tolist() for batch in killed]
    os.kill(killed._iterator._workers[0].pid, signal.SIGKILL)  # pyright: ignore
    assert [batch["label"].tolist() for batch in killed] == first
    assert data.killed == {}  # the worker read nothing when it died


@pytest.mark.slow
def test_repeated_kills_of_workers_end_with_one_message(folder, monkeypatch):
    monkeypatch.setattr(workers, "MAX_RESTARTS", 0)  # PyTorch checks for dead workers every five seconds

    class AllKill(Killing):
        rows = range(ROWS)

    with pytest.raises(ValueError, match=r"killed .*\.mp4 .* bytes.*workers"):
        list(loader(dataset(folder, AllKill, True), True, count=1))


def test_other_errors_of_workers_are_raised_unchanged(folder):
    class Broken(VideoReader):
        def read(self, sample, choose):
            raise RuntimeError("another reason")

    with pytest.raises(RuntimeError, match="another reason") as error:
        list(loader(dataset(folder, Broken, True), True, count=1))
    traceback.clear_frames(error.tb)  # they would keep the loader until a garbage collection, perhaps that at exit
