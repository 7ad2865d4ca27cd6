"""Send the curves of a training and the metrics of a test to trackers: TensorBoard, Weights & Biases, MLflow, Trackio.

Each tracker has a thread of its own, so that no step waits for a disk or a network.
"""

from __future__ import annotations

import fcntl
import importlib
import importlib.util
import json
import logging
import os
import tempfile
import textwrap
import threading
import time
import uuid
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

from fvcore.common.config import CfgNode

from slowfast.config.keys import leaves
from slowfast.utils.io import write_json
from slowfast.utils.logging import read_metrics

logger = logging.getLogger(__name__)

IDS = "trackers.json"  # in OUTPUT_DIR: name of a tracker -> identifier of the run there
PROJECT = "slowfast"  # of all runs, if the environment has no other name
MOST_ROWS = 1000  # that wait for a tracker
PATIENCE = 30.0  # seconds for all trackers together to finish
START = 120.0  # seconds for the tracker of a new run to start
SHORT = 5.0  # seconds of its start without a line in the log


class Tracker(NamedTuple):
    """A run in a program that draws curves. It is made and used in one thread."""

    id: str  # of the run; "" if the tracker needs none
    log: Callable[[Mapping[str, float], int], object]  # draw the values of a step
    finish: Callable[[bool], object]  # end the run; the argument is whether it has failed


def _tensorboard(cfg: CfgNode, step: int, id: str) -> Tracker:
    from torch.utils.tensorboard import SummaryWriter  # slow to import

    folder = Path(cfg.OUTPUT_DIR, cfg.TENSORBOARD.LOG_DIR or "tensorboard")
    # a resumed run, or one that was killed before its first checkpoint, repeats steps: those after `step` are hidden
    board = SummaryWriter(str(folder), purge_step=step + 1)

    def log(values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            board.add_scalar(name, value, step)

    return Tracker("", log, lambda failed: board.close())


def _wandb(cfg: CfgNode, step: int, id: str) -> Tracker:
    wandb: Any = importlib.import_module("wandb")
    config = None if id and not cfg.TRAIN.ENABLE else leaves(cfg)  # a test keeps that of its training
    id = id or uuid.uuid4().hex[:12]
    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", PROJECT), name=_name(cfg), id=id, resume="allow",
        config=config, dir=cfg.OUTPUT_DIR, settings=wandb.Settings(console="off"),
    )  # fmt: skip
    # wandb drops rows of earlier steps: those that a resumed training repeats, but not the metrics of a test at `step`
    free = run.step if run.resumed else 0
    return Tracker(
        id,
        lambda values, at: run.log(values, step=max(at, free) if at == step else at),
        lambda failed: run.finish(exit_code=int(failed)),
    )


def _mlflow(cfg: CfgNode, step: int, id: str) -> Tracker:
    mlflow: Any = importlib.import_module("mlflow")
    with _alone() if mlflow.get_tracking_uri().startswith("sqlite:") else nullcontext():
        if not {"MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"} & {*os.environ}:
            mlflow.set_experiment(PROJECT)
            os.environ.pop("MLFLOW_EXPERIMENT_ID", None)  # it was set there, and a later run may use another store
        # a test of a training that has failed does not make it complete
        stays_failed = bool(id) and not cfg.TRAIN.ENABLE and mlflow.get_run(id).info.status == "FAILED"
        run = mlflow.start_run(run_id=id or None, run_name=_name(cfg))
    if not id:  # MLflow refuses to change parameters
        mlflow.log_params(leaves(cfg))
    return Tracker(
        run.info.run_id,
        lambda values, step: mlflow.log_metrics(values, step=step),
        lambda failed: mlflow.end_run("FAILED" if failed or stays_failed else "FINISHED"),
    )


@contextmanager
def _alone() -> Generator[None]:
    """Exclude other processes of this user and machine.

    MLflow creates the tables of its database without a lock, and two processes that do so at once damage it.
    """
    with open(Path(tempfile.gettempdir(), f"slowfast-mlflow-{os.getuid()}.lock"), "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _trackio(cfg: CfgNode, step: int, id: str) -> Tracker:
    trackio: Any = importlib.import_module("trackio")
    id = id or f"{_name(cfg)}-{uuid.uuid4().hex[:6]}"  # Trackio identifies runs by their names
    project = os.environ.get("TRACKIO_PROJECT", PROJECT)
    run = trackio.init(project, id, config=leaves(cfg), resume="allow", embed=False)
    return Tracker(id, lambda values, step: run.log(values, step=step), lambda failed: run.finish())


def _name(cfg: CfgNode) -> str:
    return Path(cfg.OUTPUT_DIR).absolute().name


# Name of a tracker and of its package -> function of the configuration, the number of steps that the run has already
# done, and the identifier of the run of an earlier attempt, which must be continued; "" for a new run.
TRACKERS: dict[str, Callable[[CfgNode, int, str], Tracker]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "mlflow": _mlflow,
    "trackio": _trackio,
}


def chosen(cfg: CfgNode) -> list[str]:
    """Return the names of the trackers of a run."""
    return [*dict.fromkeys(["tensorboard"] * cfg.TENSORBOARD.ENABLE + cfg.TRACKERS)]


def check_packages(cfg: CfgNode) -> None:
    """Raise ValueError if a training uses a tracker whose package is not installed."""
    missing = [name for name in chosen(cfg) if importlib.util.find_spec(name) is None]
    if missing and cfg.TRAIN.ENABLE:
        packages = " ".join(missing)
        raise ValueError(f"TRACKERS {cfg.TRACKERS}: not installed here: {packages}: run pip install {packages}")


class Link:
    """Pass rows to a tracker in a thread; after a failure, log one warning and drop all further rows.

    `start` creates the tracker; then `id` contains the id of its run. If the caller waits for the id (`waited_for`), a
    failed start sets `id` to its error, and no warning is logged.
    """

    def __init__(self, name: str, start: Callable[[], Tracker], waited_for: bool) -> None:
        self.name, self.failed, self.warned = name, False, False
        self.rows: SimpleQueue[tuple[dict[str, float], int] | None] = SimpleQueue()
        self.id: Future[str] = Future()
        arguments = (start, waited_for)
        self.thread = threading.Thread(target=self._run, args=arguments, name=f"tracker {name}", daemon=True)
        self.thread.start()

    def _run(self, start: Callable[[], Tracker], waited_for: bool) -> None:
        try:
            tracker = start()
            self.id.set_result(tracker.id)
            while row := self.rows.get():
                tracker.log(*row)
            tracker.finish(self.failed)
        except BaseException as error:  # libraries may call sys.exit
            if waited_for and not self.id.done():
                self.id.set_exception(error)
            else:
                self._warn(_reason(error))

    def _warn(self, reason: str) -> None:
        if not self.warned:
            logger.warning("the tracker %s loses values (metrics.jsonl contains all of them): %s", self.name, reason)
        self.warned = True

    def failed_start(self) -> BaseException | None:
        """Wait until the tracker has started, at most `START` seconds; return the error if it has not."""
        wait([self.id], SHORT)
        if not self.id.done():
            logger.info("waiting for the tracker %s to start", self.name)
            wait([self.id], START)
        return self.id.exception() if self.id.done() else TimeoutError(f"no answer within {START:.0f} s")

    def send(self, values: dict[str, float], step: int) -> None:
        """Add a row, and return at once."""
        if self.rows.qsize() < MOST_ROWS:
            self.rows.put((values, step))
        else:
            self._warn(f"it has not accepted the last {MOST_ROWS} rows")

    def end(self, failed: bool) -> None:
        """Let the tracker finish the run after the last row."""
        self.failed = failed
        self.rows.put(None)

    def wait(self, deadline: float) -> None:
        """Wait until the tracker has finished, at most until `deadline`, a time of `time.monotonic`."""
        self.thread.join(max(0.0, deadline - time.monotonic()))
        if self.thread.is_alive():
            self._warn(f"it has not finished within {PATIENCE:.0f} s")


def start_trackers(cfg: CfgNode, step: int) -> list[Link]:
    """Start the trackers of a run.

    A training that resumes after `step` steps continues the runs of the earlier attempt in the trackers, and does not
    wait for their start.

    Raises:
        ValueError: a tracker that no earlier attempt has used does not start, or trackers.json is damaged.
    """
    file, links = Path(cfg.OUTPUT_DIR, IDS), list[Link]()
    try:
        ids: dict[str, str] = json.loads(file.read_bytes()) if file.is_file() else {}
    except ValueError as error:
        raise ValueError(f"{file} is not a JSON file ({error}): remove it to begin new runs in the trackers") from error
    for name in chosen(cfg):
        id = ids.get(name, "")
        link = Link(name, partial(TRACKERS[name], cfg, step, id), waited_for=not id)
        links.append(link)
        if not id and (error := link.failed_start()):
            link.end(failed=True)
            close(links[:-1], failed=True)
            raise ValueError(
                f"the tracker {name} does not start ({_reason(error)}): repair that, or remove it from TRACKERS"
            ) from error
        ids[name] = id or link.id.result()
    if any(ids.values()):
        write_json(file, {name: id for name, id in ids.items() if id})
    return links


def send_results(cfg: CfgNode, group: str, metrics: Mapping[str, Any]) -> None:
    """Send the metrics of a test, as "group/name", to the runs of its training in the trackers, at the last step.

    A tracker that does not start costs one warning, because the results are already in a file. So does a training that
    another process continues: its trackers would end, and TensorBoard would show no later values of it.
    """
    from slowfast.run.lock import TRAINING, is_held  # imports PyTorch, which `check_packages` does not need

    if not chosen(cfg):
        return
    if not cfg.TRAIN.ENABLE and is_held(Path(cfg.OUTPUT_DIR, TRAINING)):
        logger.warning("no tracker gets the metrics of this test, because a training is running in %s", cfg.OUTPUT_DIR)
        return
    try:
        step = max(record.get("step", 0) for record in read_metrics(cfg.OUTPUT_DIR))
        links = start_trackers(cfg, step)
    except (ValueError, OSError) as error:
        logger.warning("no tracker gets the metrics of this test: %s", error)
        return
    for link in links:
        link.send({f"{group}/{name}": value for name, value in metrics.items() if isinstance(value, float)}, step)
    close(links, failed=False)


def close(links: Sequence[Link], failed: bool) -> None:
    """Let all trackers finish; wait at most `PATIENCE` seconds for them."""
    deadline = time.monotonic() + PATIENCE
    for link in links:
        link.end(failed)
    for link in links:
        link.wait(deadline)


def _reason(error: BaseException) -> str:
    return textwrap.shorten(f"{type(error).__name__}: {error}", 400, placeholder=" ...")
