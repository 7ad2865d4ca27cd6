"""Processes that are stopped, killed or stuck: the job exits with its code and message, and no process is left."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import run_net as program
import torch.distributed.run
from run_fixtures import ENVIRONMENT, Forked

from slowfast.config import get_cfg
from slowfast.run import interrupt, launch
from slowfast.run.checkpoint import last_checkpoint
from slowfast.run.interrupt import EXIT_INTERRUPTED, EXIT_REQUEUE, Interruption
from slowfast.run.watchdog import EXIT_HUNG
from slowfast.utils.logging import read_metrics
from slowfast.weights.tensors import load_tensors

ROOT = Path(__file__).parents[2]
RUN_NET = str(ROOT / "tools" / "run_net.py")
LONG = (
    "SOLVER.MAX_EPOCH", 3000, "TRAIN.EVAL_PERIOD", 3000, "TRAIN.CHECKPOINT_PERIOD", 3000, "TEST.ENABLE", False,
    "DATA_LOADER.DECODE_TIMEOUT", 60,  # with decoder processes, which must also end
)  # fmt: skip


def stat(pid: int) -> list[str]:
    """State, parent, group, session, ... of a process; nothing of one that is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def alive(pid: int) -> bool:
    return stat(pid)[:1] not in ([], ["Z"], ["X"])


class Running:
    """A job in a session of its own, all of whose processes can be found."""

    def __init__(self, process: Forked, log: Path) -> None:
        self.process, self.log = process, log

    def pids(self) -> list[int]:
        """Every living process of the session."""
        numbers = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
        return [pid for pid in numbers if alive(pid) and stat(pid)[3:4] == [str(self.process.pid)]]

    def ranks(self) -> list[int]:
        """Return the ranks, which this process or torchrun has started, in their order."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        names = {int(pid): Path(f"/proc/{pid}/cmdline").read_text() for pid in children}
        return sorted(pid for pid, name in names.items() if "warm.py" in name or RUN_NET in name)

    def text(self) -> str:
        return self.log.read_text()

    def until(self, done: Callable[[], object]) -> None:
        deadline = time.monotonic() + 240
        while not done():
            assert time.monotonic() < deadline, f"this took too long:\n{self.text()}"
            time.sleep(0.05)

    def trains(self) -> Running:
        self.until(lambda: re.search(r" step \d*[3-9]/", self.text()) or self.process.poll() is not None)
        assert self.process.poll() is None, self.text()
        return self

    def ends(self) -> int:
        """Return the exit code when no process is left."""
        code = self.process.wait(240)
        self.until(lambda: not self.pids())
        return code


def steps(output_dir: Path) -> list[int]:
    return [record["step"] for record in read_metrics(output_dir) if record["kind"] == "train"]


@pytest.fixture
def start(experiment, fork, warm, tmp_path) -> Iterator[Callable[..., Running]]:
    """Start tools/run_net.py; in torchrun, if asked, with the rank `fresh` as a new interpreter."""
    started: list[Running] = []
    python = tmp_path / "python"  # for torchrun
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -SE tests/relay.py {warm} {sys.executable} "$@"\n')
    python.chmod(0o755)

    def begin(
        *overrides: object,
        torchrun: int = 0,
        restarts: int = 0,
        fresh: str = "",
        temporary: str = tempfile.gettempdir(),
    ) -> Running:
        log = tmp_path / f"printed_{len(started)}.txt"
        arguments = [RUN_NET, "--cfg", str(experiment), *map(str, overrides)]
        if torchrun:
            options = ("--standalone", f"--nproc_per_node={torchrun}", f"--max-restarts={restarts}")
            arguments = [torch.distributed.run.__file__, *options, *arguments]
        with open(log, "wb") as file:
            environment = {"PYTHON_EXEC": str(python), "FRESH_RANK": fresh, "TMPDIR": temporary}
            process = fork(arguments, file, file, environment=environment)
        started.append(Running(process, log))
        return started[-1]

    yield begin
    for job in started:
        for pid in job.pids():
            os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
def test_signals_save_and_a_second_ctrl_c_leaves(start, tmp_path):
    two = (*LONG, "NUM_PROCESSES", 2, "DATA_LOADER.NUM_WORKERS", 1)
    with tempfile.TemporaryDirectory() as folder:  # with a short path, for the sockets of the workers
        job = start(*two, temporary=folder).trains()
        assert len(job.ranks()) == 2 and len(job.pids()) >= 5  # with a worker each
        # as a terminal does it: all processes get a Ctrl-C; SIGTERM from their parent does not stop their saving
        os.killpg(job.process.pid, signal.SIGINT)
        assert job.ends() == EXIT_REQUEUE
        assert [path.name for path in Path(folder).iterdir() if not path.name.startswith("torch")] == []
    assert job.text().count("everything is saved") == 1 and "Traceback" not in job.text()
    step = load_tensors(str(last_checkpoint(str(tmp_path / "out"))))["step"]
    assert f"saved at step {step}" in job.text()

    job = start(*two).trains()
    assert f"at step {step}" in job.text()
    for pid in job.ranks():
        os.kill(pid, signal.SIGSTOP)  # so that they cannot handle the first request
    os.kill(job.process.pid, signal.SIGINT)
    time.sleep(0.5)
    os.kill(job.process.pid, signal.SIGINT)
    assert job.ends() == EXIT_INTERRUPTED


@pytest.mark.slow
def test_a_killed_process_ends_the_job(start, tmp_path):
    two = (*LONG, "NUM_PROCESSES", 2, "DATA_LOADER.NUM_WORKERS", 1)
    job = start(*two).trains()
    os.kill(job.ranks()[1], signal.SIGKILL)
    assert job.ends() == 1
    assert "error: process 1 was killed by SIGKILL" in job.text()
    assert "Traceback" not in job.text()

    with tempfile.TemporaryDirectory() as folder:
        job = start(*two, temporary=folder).trains()
        os.kill(job.process.pid, signal.SIGKILL)  # the processes detect it, save and exit
        assert job.ends() == -signal.SIGKILL
        assert not [*Path(folder).glob("slowfast-*")]
    assert last_checkpoint(str(tmp_path / "out"))


@pytest.mark.slow
def test_a_second_run_in_a_folder_is_refused(start, tmp_path):
    save = (*LONG, "TRAIN.CHECKPOINT_MINUTES", 1e-6, "TRAIN.KEEP_CHECKPOINTS", 0)
    first = start(*save).trains()
    os.kill(first.process.pid, signal.SIGSTOP)  # the second one waits for some seconds
    second = start(*LONG, "SOLVER.BASE_LR", 7)
    assert second.ends() == 2
    os.kill(first.process.pid, signal.SIGCONT)
    words = rf"error: OUTPUT_DIR '{tmp_path}/out' is in use: process {first.process.pid} on .* since 20\d\d-.*\n"
    assert re.fullmatch(words, second.text())
    one_view = ("TEST.NUM_ENSEMBLE_VIEWS", 1, "TEST.NUM_SPATIAL_CROPS", 1)
    test = start("TRAIN.ENABLE", False, "TEST.TEST_BEST", False, *one_view)
    assert test.ends() == 0 and (tmp_path / "out" / "test" / "metrics.json").is_file()
    os.kill(first.process.pid, signal.SIGTERM)
    assert first.ends() == EXIT_REQUEUE
    assert list((tmp_path / "out").glob("*lock*")) == []


@pytest.mark.slow
def test_a_hung_process_ends_the_job(start, tmp_path):
    job = start(*LONG, "NUM_PROCESSES", 2, "DIST_TIMEOUT", 0.2).trains()
    os.kill(job.ranks()[1], signal.SIGSTOP)
    assert job.ends() == 1
    assert re.search(r"error: rank 0 on \S+ made no progress for 12 s .* it is in \w+ at .*\.py:\d+", job.text())
    assert "process 1 did not respond" in job.text()
    assert "in train_epoch" in (tmp_path / "out" / "hang_rank0.txt").read_text()


@pytest.mark.slow
def test_a_training_may_last_longer_than_the_timeout(start, tmp_path):
    # no process is started for the decoder, which takes long on a busy machine
    job = start(*LONG, "TRAIN.EVAL_PERIOD", 2, "DIST_TIMEOUT", 0.1, "DATA_LOADER.DECODE_TIMEOUT", 0).trains()
    before, begun = steps(tmp_path / "out"), time.monotonic()
    while job.process.poll() is None and time.monotonic() < begun + 8:  # it runs for half of the time
        for number, seconds in ((signal.SIGSTOP, 0.1), (signal.SIGCONT, 0.1)):
            os.kill(job.process.pid, number)
            time.sleep(seconds)
    assert job.process.poll() is None and len(steps(tmp_path / "out")) > len(before), job.text()
    os.kill(job.process.pid, signal.SIGTERM)
    assert job.ends() == EXIT_REQUEUE


@pytest.mark.slow
def test_torchrun_restarts_a_job(start, tmp_path):
    job = start(*LONG, "TRAIN.MAX_STEPS", 24, "TRAIN.CHECKPOINT_MINUTES", 1e-6, torchrun=2, restarts=1, fresh="1")
    job.trains()
    os.kill(job.ranks()[0], signal.SIGKILL)
    assert job.ends() == 0
    assert "resumed from" in job.text() and steps(tmp_path / "out") == [*range(1, 25)]


@pytest.mark.slow
def test_torchrun_prints_an_error_once(start, videos, tmp_path):
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "train.csv").write_text((videos / "train.csv").read_text() + "train_0.mp4 9\n")
    job = start("DATA.PATH_TO_DATA_DIR", tmp_path / "lists", torchrun=2)
    assert job.ends() != 0
    ours, _, torchruns = job.text().partition("ChildFailedError")
    assert ours.count("error: ") == 1 and "train.csv:25" in ours
    assert "train.csv:25" in torchruns and "To enable traceback" not in torchruns


@pytest.mark.slow
@pytest.mark.parametrize("held", [False, True], ids=["in Python", "holding the interpreter"])
def test_watchdog_reports_where_a_process_is(held, call, tmp_path):
    wait = "ctypes.PyDLL(None).sleep(60)" if held else "time.sleep(60)"
    (tmp_path / "program.py").write_text(
        "import ctypes, time\nfrom pathlib import Path\nfrom slowfast.run import watchdog\nwatchdog.LAST_RESORT = 1.0\n"
        f"def stuck():\n    {wait}\n"
        f"with watchdog.watching(0.5, Path({str(tmp_path / 'out' / 'hang.txt')!r})):\n    stuck()\n"
    )
    done = call(tmp_path / "program.py")
    assert "in stuck" in done.stderr
    if not held:
        assert done.returncode == EXIT_HUNG and "rank 0 on" in done.stderr and "hang.txt" in done.stderr
        assert "in stuck" in (tmp_path / "out" / "hang.txt").read_text()
    assert done.returncode != 0


@pytest.mark.slow
def test_watchdog_ends_no_process_that_makes_progress_or_has_left(call, tmp_path):
    (tmp_path / "program.py").write_text(
        "import time\nfrom pathlib import Path\nfrom slowfast.run.watchdog import progress, watching\n"
        f"progress()\nwith watching(0.8, Path({str(tmp_path / 'hang.txt')!r})):\n"
        "    for _ in range(5):\n        time.sleep(0.3)\n        progress()\n"
        "progress()\ntime.sleep(1)\n"
    )
    assert call(tmp_path / "program.py").returncode == 0
    assert not (tmp_path / "hang.txt").exists()


def test_forked_children_end_with_their_parent(tmp_path):
    """Only SIGKILL ends a worker that blocks in a system call, as on a dead network drive."""
    os.mkfifo(tmp_path / "fifo")
    program = (
        "import multiprocessing, os, signal, sys, time\nfrom slowfast.run.children import end_with_this_process\n"
        f"def hang():\n    print(os.getpid(), flush=True)\n    open({str(tmp_path / 'fifo')!r})\n"
        "with end_with_this_process():\n    multiprocessing.get_context('fork').Process(target=hang).start()\n"
        "    time.sleep(float(sys.argv[1]))\n"
    )
    for seconds, deadly in ((0.5, False), (60, True)):
        parent = subprocess.Popen(
            [sys.executable, "-c", program, str(seconds)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        assert parent.stdout
        child = int(parent.stdout.readline())
        os.kill(child, signal.SIGTERM)  # of a scheduler: for the parent
        time.sleep(0.1)
        assert alive(child)
        if deadly:
            parent.kill()
        parent.wait(30)
        deadline = time.monotonic() + 30
        while alive(child):
            assert time.monotonic() < deadline
            time.sleep(0.05)


PRINTING = """
import multiprocessing, threading, time
from tqdm import tqdm
from slowfast.run.children import end_with_this_process

held = threading.Event()

def hold():
    with tqdm.get_lock():
        held.set()
        time.sleep(60)

threading.Thread(target=hold, daemon=True).start()
held.wait()
with end_with_this_process():
    child = multiprocessing.get_context("fork").Process(target=tqdm.write, args=("printed",))
    child.start()
    child.join(20)
"""


def test_a_fork_prints_while_a_thread_of_its_parent_does():
    """For example a worker that starts again while the thread that writes checkpoints logs."""
    done = subprocess.run([sys.executable, "-c", PRINTING], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "printed\n"), done


MAPPED = """
import atexit, os, sys
from pathlib import Path
from tqdm import tqdm
from slowfast.config import get_cfg
from slowfast.run.launch import launch

def job(cfg):
    atexit.register(os.write, 1, b"left\\n")  # as modules of users do
    for _ in tqdm(range(1)):
        pass
    maps = Path("/proc/self/maps").read_text()
    sys.stdout.write(f"semaphores {maps.count('/dev/shm/sem.')}\\n")  # at once: the processes write at the same time
    sys.stdout.flush()

if __name__ == "__main__":
    cfg = get_cfg()
    cfg.NUM_GPUS, cfg.NUM_PROCESSES, cfg.TRAIN.ENABLE, cfg.OUTPUT_DIR = 0, 2, False, sys.argv[1]
    launch(cfg, job)
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="maps of a process are files on Linux")
def test_processes_have_no_files_in_shared_memory(tmp_path):
    """SIGKILL of all processes of a job, for example at the end of a container, would leave them there."""
    program = tmp_path / "program.py"
    program.write_text(MAPPED)
    command = [sys.executable, str(program), str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0 and re.findall(r"semaphores (\d+)", done.stdout) == ["0", "0"], done
    assert done.stdout.count("left\n") == 2


def test_show_into_a_closed_pipe_prints_no_error(experiment):
    command = f"{sys.executable} {RUN_NET} --cfg {experiment} --show | head -n 1"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr == "" and done.stdout.startswith("NUM_GPUS: 0")


@pytest.mark.parametrize(
    ("pairs", "shown"),
    [(("SOLVER.WARMUP_EPOCHS", "9"), True), (("SOLVER.WARMUP_EPOCHS", "often"), False), (("NO_KEY", "9"), False)],
)
def test_show_prints_values_that_contradict_each_other_and_fails(call, experiment, pairs, shown):
    done = call(RUN_NET, "--cfg", experiment, "--show", *pairs)
    assert done.returncode == 2 and pairs[0] in done.stderr
    assert (re.search(r"WARMUP_EPOCHS: 9.0 +# command line", done.stdout) is not None) == shown == bool(done.stdout)


LATE = """
import os, signal, sys
sys.path.insert(0, "tools")
import run_net
from slowfast.visualization import plots, report

class AtTheEnd:
    def __del__(self, kill=os.kill, pid=os.getpid(), signals=(signal.SIGUSR2, signal.SIGTERM), write=os.write):
        write(1, b"the end\\n")
        for number in signals:
            kill(pid, number)

def draw(_, path):
    os.kill(os.getpid(), signal.SIGUSR2)
    path.touch()

plots.plot_curves, report.write_report = draw, lambda _: None  # which take long
sys.at_the_end = AtTheEnd()
sys.exit(run_net.main())
"""


@pytest.mark.slow
def test_a_request_after_the_end_makes_no_failure_of_a_success(experiment, tmp_path):
    """For example a time limit: Python removes its handlers while it exits, and SIGUSR2 then ends the process."""
    command = [sys.executable, "-c", LATE, "--cfg", str(experiment), "TRAIN.MAX_STEPS", "1", "TEST.ENABLE", "False"]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0 and done.stdout.endswith("the end\n"), done
    assert (tmp_path / "out" / "curves.png").is_file()


def test_a_failure_on_the_way_out_does_not_claim_to_have_saved(monkeypatch, capsys):
    def fail(*_):
        interrupt._received.append(signal.SIGTERM)
        raise RuntimeError("connection closed by peer\nmany more lines")

    cfg = get_cfg()
    monkeypatch.setattr(interrupt, "_received", [])
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(launch, "_join_and_run", fail)
    with pytest.raises(Interruption, match=r"RuntimeError: connection closed by peer$"):
        launch.run(cfg, lambda _: None)
    monkeypatch.setenv("RANK", "0")
    assert program.run_job(cfg, "") == EXIT_REQUEUE
    message = capsys.readouterr().err
    assert "is saved" not in message and "from the last checkpoint" in message


@pytest.mark.parametrize(
    ("given", "place"),
    [("tcp://[::1]:23456", ("::1", "23456")), ("tcp://node1:9", ("node1", "9")), ("node1:9", ("node1", "9"))],
)
def test_the_meeting_point_is_a_name_or_an_address(given, place):
    assert launch._meeting_point(get_cfg(), given) == place


def test_requests_to_stop_are_forwarded(monkeypatch):
    monkeypatch.setattr(interrupt, "_received", [signal.SIGTERM])
    asked: list[int] = []

    def process(code: int) -> SimpleNamespace:
        return SimpleNamespace(
            is_alive=lambda: not asked, terminate=lambda: asked.append(code), exitcode=code, sentinel=0
        )

    monkeypatch.setattr(launch, "wait", lambda *_, **__: None)
    codes = [75, -15]
    assert launch._supervise([process(code) for code in codes]) == asked == codes  # pyright: ignore


@pytest.mark.parametrize("code", [-signal.SIGTERM, EXIT_INTERRUPTED])
def test_processes_do_not_wait_for_one_that_was_stopped_alone(code, monkeypatch):
    monkeypatch.setattr(interrupt, "_received", [])
    monkeypatch.setattr(launch, "wait", lambda *_, **__: None)
    monkeypatch.setattr(launch, "GRACE", 0.01)
    stopped = SimpleNamespace(is_alive=lambda: False, exitcode=code, sentinel=0)
    waiting = SimpleNamespace(is_alive=lambda: True, exitcode=None, sentinel=1)
    assert launch._supervise([stopped, waiting]) == [code, None]  # pyright: ignore


@pytest.mark.parametrize(("codes", "saved"), [((75, -15), True), ((75, 130), False)])
def test_processes_that_were_stopped_say_if_all_is_saved(codes, saved, tmp_path):
    with pytest.raises(Interruption) as stop:
        launch._raise_outcome(dict(enumerate(codes)), tmp_path)
    assert stop.value.saved is saved


@pytest.mark.parametrize(
    ("codes", "cause"),
    [
        ((1, -9, 75), "process 1 was killed by SIGKILL"),
        ((124, None, 1), "process 0 made no progress for DIST_TIMEOUT.*; process 1 did not respond"),
        ((75, 0, 3), "process 2 exited with code 3"),
    ],
)
def test_the_cause_of_exit_codes_is_found(codes, cause, tmp_path):
    with pytest.raises(launch.JobError, match=cause):
        launch._raise_outcome(dict(enumerate(codes)), tmp_path)
    launch._raise_outcome({0: 0, 1: 0}, tmp_path)


@pytest.mark.parametrize(
    ("codes", "user", "error", "cause"),
    [
        ((1, 75), False, launch.JobError, "process 3 failed:\nits error"),
        ((75, 1), True, ValueError, "^its error"),
        ((1, -9), False, launch.JobError, "^process 1 was killed by SIGKILL"),
        ((1, -6, -9), False, launch.JobError, "^process 1 was killed by SIGABRT; process 2 was killed by SIGKILL"),
        ((1, -6), False, launch.JobError, "process 3 failed:\nits error\nprocess 1 was killed by SIGABRT"),
        ((1, -6), True, ValueError, "^its error"),
        ((1, 124), False, launch.JobError, "process 1 made no progress"),
    ],
)
def test_the_first_error_is_named_unless_a_process_was_killed_or_hangs(codes, user, error, cause, tmp_path):
    first = {"user": user, "rank": 3, "message": "its error"}
    (tmp_path / launch.FIRST_ERROR).write_text(json.dumps(first))
    with pytest.raises(error, match=cause):
        launch._raise_outcome(dict(enumerate(codes)), tmp_path)


def test_pictures_that_cannot_be_written_cost_nothing_else(tmp_path, capsys):
    cfg = get_cfg()
    cfg.OUTPUT_DIR = str(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"kind": "test", "top1": 50.0, "shuffled_frames": false}\n')
    program.draw(cfg, drawn=0)
    assert not (tmp_path / "curves.png").exists()  # nothing was trained
    assert (tmp_path / "report.html").is_file() and not capsys.readouterr().err
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"kind": "val", "step": 6, "epoch": 1, "top1": 50.0}\n')
    for name in ("curves.png", "report.html"):
        (tmp_path / name).unlink(missing_ok=True)
        (tmp_path / name).mkdir()
        program.draw(cfg, drawn=0)
        assert "IsADirectoryError" in capsys.readouterr().err
        (tmp_path / name).rmdir()
