"""Requests to stop reach the process in any state."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from slowfast.run.interrupt import EXIT_INTERRUPTED

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_second_interrupt_ends_the_process_in_any_state():
    """Within a destructor, for example, where Python only prints exceptions; and if the reader of its output exited."""
    program = (
        "import os, signal, time\nfrom slowfast.run import interrupt\ninterrupt.listen()\n"
        "class Lost:\n    def __del__(self):\n        os.kill(os.getpid(), signal.SIGINT)\n        time.sleep(0.01)\n"
        "for _ in range(2):\n    Lost()\n    print('went on', flush=True)\n"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=50)
    assert done.returncode == EXIT_INTERRUPTED and done.stdout == "went on\n"
    assert "from the last checkpoint" in done.stderr
    out, into = os.pipe()
    os.close(out)
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=into, timeout=50)
    os.close(into)
    assert done.returncode == EXIT_INTERRUPTED


@pytest.mark.parametrize(
    ("before", "noticed"), [(["env", "--default-signal=HUP"], ["SIGHUP", "SIGHUP"]), (["nohup"], ["None", "SIGXCPU"])]
)
def test_closed_terminals_and_limits_of_processor_time_are_requests_to_stop(before, noticed):
    program = (
        "import os, signal\nfrom slowfast.run import interrupt\ninterrupt.listen()\n"
        "for number in (signal.SIGHUP, signal.SIGXCPU):\n"
        "    os.kill(os.getpid(), number)\n"
        "    print(getattr(interrupt.received(), 'name', None))\n"
    )
    done = subprocess.run([*before, sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.split() == noticed, done.stderr


def test_a_limit_of_processor_time_does_not_end_a_process_that_has_saved():
    """The system repeats SIGXCPU each second."""
    program = (
        "import os, signal\nfrom slowfast.run import interrupt, launch\n"
        "with launch._own_signal_handlers():\n"
        "    interrupt.listen()\n    os.kill(os.getpid(), signal.SIGXCPU)\n"
        "os.kill(os.getpid(), signal.SIGXCPU)\n"
        "print(signal.getsignal(signal.SIGTERM) == signal.SIG_DFL)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == "True\n", done.stderr
