"""A `python` without the time for imports, for programs that start processes: relay.py ADDRESS python -u PROGRAM ...

The server of tests/warm.py at ADDRESS forks the program, a file or `-m MODULE`. This process passes its signals on, and
ends with the exit code of the program, which is killed with this process. The first attempt of the process with the
rank FRESH_RANK is a new interpreter, as for users.
"""

import contextlib
import json
import os
import select
import signal
import socket
import sys
import threading


def relay(address: str, *command: str) -> int:
    """Let the server fork the command; return its exit code."""
    ranks, restarts = ([os.environ.get(name) for name in names] for names in (
        ("RANK", "SLURM_PROCID"), ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"),
    ))  # fmt: skip
    if os.environ.get("FRESH_RANK", "none") in ranks and not {*restarts} - {None, "0"}:
        os.execv(command[0], command)
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(address)
        arguments = (os.path.abspath(__file__), str(os.getpid()), *command[2:])
        request = (arguments, dict(os.environ), os.getcwd(), 0, [])
        socket.send_fds(server, [json.dumps(request).encode()], [1, 2])
        answers = server.makefile()
        program = int(answers.readline())

        def forward(number: int, _: object) -> None:
            with contextlib.suppress(ProcessLookupError):  # the program has ended
                os.kill(program, number)

        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP):
            signal.signal(number, forward)
        return int(answers.readline())


def run(process: int, arguments: list[str]) -> None:
    """Run the program in the forked process, which is killed with `process`."""
    import runpy

    def follow(descriptor: int) -> None:
        select.select([descriptor], [], [])
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=follow, args=(os.pidfd_open(process),), daemon=True).start()
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        sys.path[0] = os.path.dirname(os.path.abspath(arguments[0]))
        runpy.run_path(arguments[0], run_name="__main__")


if __name__ == "__main__":
    if sys.argv[1].isdigit():
        run(int(sys.argv[1]), sys.argv[2:])
    else:
        sys.exit(relay(*sys.argv[1:]))
