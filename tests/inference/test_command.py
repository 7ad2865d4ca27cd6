"""Test the processes that the programs share: they exit with the program, and fail in one line."""

import argparse
import fcntl
import time
from multiprocessing import get_context

import pytest
import torch

from slowfast.inference.command import in_processes


def hold(args, folder, part, parts):
    """Hold a lock as long as this process runs."""
    with open(folder / str(part), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        (folder / f"{part}.ready").touch()
        time.sleep(100)


def start(folder):
    in_processes(hold, argparse.Namespace(gpus=None, processes=2), folder, None)  # pyright: ignore[reportArgumentType]


def wait_for(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def is_free(path):
    with open(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


@pytest.mark.slow
def test_processes_exit_with_the_program_that_is_killed(tmp_path):
    program = get_context("fork").Process(target=start, args=(tmp_path,))
    program.start()
    try:
        wait_for(lambda: all((tmp_path / f"{part}.ready").exists() for part in range(2)))
        assert not is_free(tmp_path / "0")
    finally:
        program.kill()
        program.join()
    wait_for(lambda: all(is_free(tmp_path / str(part)) for part in range(2)))


def test_more_gpus_than_the_machine_has_are_a_wrong_input():
    args = argparse.Namespace(gpus=torch.cuda.device_count() + 1, processes=None)
    with pytest.raises(ValueError, match="--gpus"):
        in_processes(hold, args, None, None)  # pyright: ignore[reportArgumentType]
