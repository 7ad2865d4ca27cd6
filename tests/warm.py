"""A server that forks processes with all imports of a run done, because these take longer than most runs of the tests.

It is a fresh interpreter without threads of Python: a run begins as it would from the command line, some seconds later.
A request is the JSON of (arguments, environment, working directory, ranks, options), with the descriptors of stdout and
stderr; the answer is a line with the process id, and one with the exit code. The process leads a new session. With
ranks, it forks that many as torchrun would, and its exit code is the first of theirs that is not 0. Options are names:

    fresh      imports the package again, from the PYTHONPATH of the environment
    pictures   a run draws its curves and its report, which takes longer than a short training
    spawn      the processes that a program spawns are new interpreters, as for users, and not forks
"""

import atexit
import contextlib
import json
import multiprocessing.context
import os
import runpy
import signal
import socket
import sys
import tempfile
import threading

import scipy.optimize  # noqa: F401  every test with labels
import torch._dynamo  # the first optimizer imports it
import torch.utils.tensorboard  # noqa: F401

import slowfast.commands
import slowfast.engine.test
import slowfast.engine.train
import slowfast.inference.export
import slowfast.inference.extract
import slowfast.inference.predict
import slowfast.inference.probe
import slowfast.inference.visualize
import slowfast.run.launch
import slowfast.visualization.report  # noqa: F401


def serve(address: str, owner: int) -> list[str]:
    """Wait for requests; returns the options in the process of each, with `sys.argv` set to its program.

    The server exits after the process `owner`.
    """
    signal.signal(signal.SIGCHLD, lambda *_: reap())  # an ignored signal would lose the keepers' CPU time
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        listener.settimeout(1)
        print("ready", flush=True)
        while True:
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                try:
                    os.kill(owner, 0)
                except ProcessLookupError:
                    os._exit(0)
                continue
            if os.fork() == 0:
                break
            connection.close()
    connection.settimeout(None)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # also if nohup started the tests
    message, descriptors, _, _ = socket.recv_fds(connection, 1 << 20, 2)
    run = os.fork()
    if run:  # the keeper
        with contextlib.suppress(OSError):  # the test may have ended
            connection.sendall(f"{run}\n".encode())
            connection.sendall(f"{exit_code(run)}\n".encode())
        os._exit(0)
    connection.close()
    os.setsid()
    for standard, descriptor in zip((1, 2), descriptors, strict=True):
        os.dup2(descriptor, standard)
        os.close(descriptor)
    sys.argv, environment, folder, ranks, options = json.loads(message)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None  # it may be another one here
    if "fresh" in options:
        for name in [name for name in sys.modules if name.partition(".")[0] == "slowfast"]:
            del sys.modules[name]
        root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        others = [path for path in sys.path[1:] if path != root]
        sys.path[1:] = [*environment["PYTHONPATH"].split(os.pathsep), *others]
    if ranks:
        lead(ranks)
    return options


def reap() -> None:
    """Wait for the keepers that have exited."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def lead(ranks: int) -> None:
    """Fork a process per rank; returns in each of them."""
    processes = []
    for rank in range(ranks):
        processes.append(os.fork())
        if processes[-1] == 0:
            os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks), LOCAL_WORLD_SIZE=str(ranks))
            return
    os._exit(next(filter(None, map(exit_code, processes)), 0))


def exit_code(process: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def run(options: list[str]) -> int:
    """Run the program that `sys.argv` names; return its exit code."""
    if "pictures" not in options:
        from slowfast.visualization import plots, report

        plots.plot_curves = report.write_report = lambda *_: None
    if "spawn" not in options:
        multiprocessing.context._concrete_contexts["spawn"] = multiprocessing.get_context("fork")  # pyright: ignore
    sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


if __name__ == "__main__":
    code = run(serve(sys.argv[1], int(sys.argv[2])))
    # The shutdown of an interpreter, except that modules are not removed, which takes a second.
    threading._shutdown()  # pyright: ignore[reportAttributeAccessIssue]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
