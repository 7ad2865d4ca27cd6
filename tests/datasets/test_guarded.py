"""Test decoding in a separate process: it is killed when it blocks, and no process is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from slowfast.datasets import guarded
from slowfast.datasets.guarded import read_frames_within
from slowfast.datasets.reader import MediaError, read_frames

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def video(tmp_path_factory, write_video) -> str:
    return write_video(tmp_path_factory.mktemp("guarded") / "video.mp4", frames=40)


@pytest.fixture
def pipe(tmp_path) -> str:
    """Return a FIFO without a writer: a process that opens it blocks inside the operating system."""
    path = tmp_path / "pipe.mp4"
    os.mkfifo(path)
    return str(path)


def middle(length: int) -> list[int]:
    return [length // 2, 3, 3]


def process_id() -> int:
    return vars(guarded._local)["pyav"].process.pid


def is_gone(pid: int) -> bool:
    try:
        return "(zombie)" in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True


def test_the_frames_are_those_of_a_read_in_this_process(video, tmp_path, write_video, write_folder):
    large = write_video(tmp_path / "large.mp4", height=240, width=320)
    folder = write_folder(tmp_path / "folder", frames=5)
    for path in (video, large, folder, video):
        frames = read_frames_within(60, path, middle, colors="BGR")
        assert np.array_equal(frames, read_frames(path, middle, colors="BGR")) and not frames.flags.writeable
    assert np.array_equal(read_frames_within(0, video, middle), read_frames(video, middle))


def test_the_process_starts_without_pytorch(video):
    """The import of PyTorch would take seconds and hundreds of megabytes for every worker."""
    read_frames_within(60, video, middle)
    assert "libtorch" not in Path(f"/proc/{process_id()}/maps").read_text()


def test_a_process_that_does_not_start_in_time_is_an_error(video, monkeypatch):
    vars(guarded._local).clear()
    started = []
    monkeypatch.setattr(guarded, "START_LIMIT", 0.0)
    popen = subprocess.Popen
    monkeypatch.setattr(guarded.subprocess, "Popen", lambda *a, **k: started.append(popen(*a, **k)) or started[-1])
    with pytest.raises(RuntimeError, match="has not started within 0 s"):
        read_frames_within(60, video, middle)
    assert started[0].poll() == -signal.SIGKILL


def test_a_process_that_cannot_start_is_no_fault_of_a_file(video, capfd):
    with pytest.raises(RuntimeError, match="could not start"):
        read_frames_within(60, video, middle, backend="none")
    assert "unknown decoding backend 'none'" in capfd.readouterr().err


def test_a_process_serves_many_reads_and_is_replaced_when_it_blocks(video, pipe):
    read_frames_within(60, video, middle)
    first = process_id()
    read_frames_within(60, video, middle)
    assert process_id() == first
    with pytest.raises(MediaError, match=r"pipe\.mp4: .*0\.3 s .*decode_timeout"):
        read_frames_within(0.3, pipe, middle)
    assert is_gone(first)
    assert len(read_frames_within(60, video, middle)) == 3 and process_id() != first


def test_a_crash_of_the_decoder_is_a_fault_of_the_file(video):
    def crash(length: int) -> list[int]:
        os.kill(process_id(), signal.SIGSEGV)
        return [0]

    with pytest.raises(MediaError, match=r"video\.mp4: .*-11"):
        read_frames_within(60, video, crash)

    def run_out_of_memory(length: int) -> list[int]:
        os.kill(process_id(), signal.SIGKILL)  # as the system does when memory runs out
        return [0]

    with pytest.raises(MediaError, match=rf"video\.mp4: .*memory.*{os.path.getsize(video):,} bytes"):
        read_frames_within(60, video, run_out_of_memory)
    assert len(read_frames_within(60, video, middle)) == 3
    os.kill(process_id(), signal.SIGKILL)  # between two reads, so no video is at fault
    while vars(guarded._local)["pyav"].alive():  # a zombie may have threads that are not gone yet
        time.sleep(0.01)
    assert len(read_frames_within(60, video, middle)) == 3


def test_signals_to_all_processes_of_a_job_do_not_break_a_video(video):
    def signal_all(length: int) -> list[int]:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
            os.kill(process_id(), number)
        return middle(length)

    assert np.array_equal(read_frames_within(60, video, signal_all), read_frames(video, middle))


def test_signals_to_all_processes_of_a_job_do_not_stop_a_start(video, monkeypatch):
    """They arrive before the new interpreter can ignore them."""
    popen = subprocess.Popen

    def start(*args, **options):
        process = popen(*args, **options)
        for number in guarded.FOR_THE_OWNER:
            process.send_signal(number)
        return process

    monkeypatch.setattr(guarded.subprocess, "Popen", start)
    vars(guarded._local).clear()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    assert np.array_equal(read_frames_within(60, video, middle), read_frames(video, middle))
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before


def test_other_errors_pass_through_and_the_next_read_is_not_mixed_up(video, tmp_path):
    with pytest.raises(ZeroDivisionError):
        read_frames_within(60, video, lambda length: [length // 0])
    with pytest.raises(RuntimeError, match=r"(?s)cannot be read:.*Traceback.*AttributeError"):
        read_frames_within(60, str(tmp_path), middle, image_template=5)
    with pytest.raises(MediaError, match="no such file") as caught:
        read_frames_within(60, str(tmp_path / "no.mp4"), middle)
    assert caught.value.path == str(tmp_path / "no.mp4")
    assert np.array_equal(read_frames_within(60, video, middle), read_frames(video, middle))


def test_messages_of_the_process_are_logged(tmp_path, write_video, caplog):
    pytest.importorskip("decord")
    path = write_video(tmp_path / "narrow.mp4", height=46, width=72)
    with caplog.at_level("INFO", logger="slowfast"):
        for _ in range(2):
            read_frames_within(60, path, middle, backend="decord")
    assert sum("decord cannot read some videos" in record.getMessage() for record in caplog.records) <= 1


def test_threads_and_forks_have_separate_processes(video):
    expected = read_frames_within(60, video, middle).copy()
    first = process_id()
    others: list[int] = []

    def read() -> None:
        assert np.array_equal(read_frames_within(60, video, middle), expected)
        others.append(process_id())

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({first, *others}) == 3
    child = os.fork()
    if child == 0:
        good = np.array_equal(read_frames_within(60, video, middle), expected) and process_id() != first
        os._exit(not good)
    assert os.waitpid(child, 0)[1] == 0
    read()
    assert others[-1] == first


LOADER = """
import sys
from torch.utils.data import DataLoader
from slowfast.datasets.batches import EpochBatchSampler
from slowfast.datasets.dataset import VideoEvalDataset, VideoReader, as_made
from slowfast.datasets.lists import VideoList
from slowfast.datasets.sampling import SparseSampler
if __name__ == "__main__":
    paths = sys.argv[2:]
    reader = VideoReader(SparseSampler(2), decode_timeout=600)
    dataset = VideoEvalDataset(VideoList(paths, [0] * len(paths)), reader, scale=48, crop=48)
    sampler = EpochBatchSampler(len(paths), 1, train=False)
    for _ in DataLoader(dataset, batch_sampler=sampler, collate_fn=as_made, num_workers=int(sys.argv[1])):
        print("batch", flush=True)
"""


def family(mark: str) -> list[int]:
    """Return the processes with `mark` in their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid() and not is_gone(int(entry.name)):
            try:
                if mark.encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")
@pytest.mark.parametrize("workers", [0, 2])
def test_nothing_is_left_when_the_main_process_is_killed(tmp_path, video, pipe, workers):
    script = tmp_path / "loader.py"
    script.write_text(LOADER)
    mark = f"{tmp_path}/mark"  # is in the module path, and so in every command line
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), mark))}
    command = [sys.executable, str(script), str(workers), video, video, pipe, pipe]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as main:
        assert main.stdout is not None
        assert [main.stdout.readline() for _ in range(2)] == ["batch\n"] * 2
        while len(family(mark)) < max(workers, 1):  # by now both readers wait for the pipe
            time.sleep(0.1)
        main.kill()
    while family(mark) or family(str(script)):  # the time limit of the test ends this if something stays
        time.sleep(0.1)
