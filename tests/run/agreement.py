"""Two processes, one of which fails or finds a fact that both need: python agreement.py FOLDER."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from slowfast.config import load_config
from slowfast.engine import setup
from slowfast.engine.batch_norm import clips_until_stopped
from slowfast.engine.start import check_test
from slowfast.engine.step import PendingStep, agree, settle
from slowfast.engine.train import wait_for_all
from slowfast.run import interrupt
from slowfast.run.rendezvous import join_group
from slowfast.utils import distributed
from slowfast.utils.distributed import SharedError

CPU = torch.device("cpu")


def raised(function: Callable[[], Any]) -> Exception:
    """Return the error that `function` raises."""
    try:
        function()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def failing(error: Exception) -> Callable[..., None]:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    return fail


def process(rank: int, folder: Path, port: int) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    join_group("gloo", CPU, timeout=60, check=lambda: None)
    interrupt.listen()

    assert distributed.on_main(lambda: rank) == 0
    error = raised(lambda: distributed.on_main(failing(ValueError("no checkpoint"))))
    assert isinstance(error, SharedError) and str(error) == "no checkpoint"
    error = raised(lambda: distributed.on_main(failing(OSError(28, "disk full", "log.txt"))))
    assert isinstance(error, OSError) and (error.errno, error.strerror, error.filename) == (28, "disk full", "log.txt")
    error = raised(lambda: distributed.on_main(failing(OSError("disk full"))))
    assert isinstance(error, RuntimeError if rank else OSError) and "disk full" in str(error)

    cfg = load_config(None, ["DATA.PATH_TO_DATA_DIR", "/nowhere", "NUM_GPUS", "0"])
    assert isinstance(raised(lambda: check_test(cfg)), SharedError)

    setup._bfloat16_convolution_is_right = lambda device: True
    auto = load_config(None, ["TRAIN.MIXED_PRECISION", "True", "TRAIN.AMP_DTYPE", "auto", "NUM_GPUS", "0"])
    for having, expected in ((1, torch.float16), (2, torch.bfloat16)):
        torch.cuda.is_bf16_supported = lambda having=having, **_: rank < having  # of GPUs of two generations
        assert setup.amp_dtype(auto, torch.device("cuda")) is expected

    def write(stop_on_error: bool) -> None:
        time.sleep(0.3)
        (folder / "written").touch()

    run: Any = SimpleNamespace(writer=SimpleNamespace(wait=write), device=CPU, to_device=lambda video: video)
    wait_for_all(run, stop_on_error=True)
    assert (folder / "written").exists()
    run.writer.wait = failing(ValueError("could not be written"))
    assert isinstance(raised(lambda: wait_for_all(run, stop_on_error=True)), SharedError)

    def batches() -> Iterator[dict[str, Any]]:
        for n in range(4):
            if rank == 1 and n == 2:
                os.kill(os.getpid(), signal.SIGUSR1)
            yield {"video": torch.randn(1, 3)}

    clips = clips_until_stopped(run, batches())  # pyright: ignore
    assert next(clips).shape == next(clips).shape == (1, 3)
    assert isinstance(raised(lambda: next(clips)), interrupt.Interruption)
    assert interrupt.received() == signal.SIGUSR1  # so that rank 0 puts the job into the queue again

    model = torch.nn.Conv2d(2, 2, 1).to(memory_format=torch.channels_last)
    torch.nn.init.constant_(model.weight, rank)
    setup.share_weights(model)
    assert not model.weight.any() and model.weight.is_contiguous(memory_format=torch.channels_last)

    interrupt.listen()
    if rank == 1:
        os.kill(os.getpid(), signal.SIGUSR2)
    run.cfg, run.writer = auto, SimpleNamespace(seconds_since_save=lambda: 0.0)
    facts = torch.cat([agree(torch.ones(1), run)[1:], torch.tensor([0.0, 1.0, 1.0])])
    run.pending = deque([PendingStep(1, [], lambda: facts)])
    assert settle(SimpleNamespace(), run).stop and interrupt.received() == signal.SIGUSR2  # pyright: ignore
    distributed.destroy_process_group()


if __name__ == "__main__":
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        free = listener.getsockname()[1]
    # forked, so that they do not import everything again
    torch.multiprocessing.start_processes(process, (Path(sys.argv[1]), free), nprocs=2, start_method="fork")
