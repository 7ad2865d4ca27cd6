"""Train and test a model: python tools/run_net.py --cfg exp/demo/config.yaml [KEY VALUE ...]."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

# On a shared core, OpenMP's threads must sleep while they wait: they would spin many times longer than the work takes.
# It must be set before PyTorch is imported.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

from fvcore.common.config import CfgNode

import slowfast
from slowfast.config import ConfigError, check_variables, format_config, is_key, load_config
from slowfast.config.load import read_overrides
from slowfast.engine.trackers import check_packages
from slowfast.run.interrupt import EXIT_REQUEUE, Interruption, ignore, leave
from slowfast.utils.io import Parser, prepare_streams, print_error

# Options that set a key: of PySlowFast, and for Slurm.
KEYS = {
    "--num_shards": "NUM_SHARDS",
    "--shard_id": "SHARD_ID",
    "--nodes": "NUM_SHARDS",
    "--gpus-per-node": "NUM_GPUS",
    "--tasks-per-node": "NUM_PROCESSES",
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--cfg", required=True, metavar="FILE", help="experiment, such as exp/demo/config.yaml")
    parser.add_argument("--show", action="store_true", help="print every value and its origin, and run nothing")
    parser.add_argument("--find-batch", action="store_true", help="print the largest TRAIN.BATCH_SIZE that fits")
    parser.add_argument("--num_shards", help="machines of the job (NUM_SHARDS)")
    parser.add_argument("--shard_id", help="number of this machine (SHARD_ID)")
    parser.add_argument("--init_method", default="", metavar="tcp://HOST:PORT", help="meeting point of the machines")
    parser.add_argument("--opts", action="store_true", help="accepted before KEY VALUE, as in PySlowFast")
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="change configuration values")
    slurm = parser.add_argument_group("on a Slurm cluster")
    slurm.add_argument("--slurm", action="store_true", help="submit the job and return; required by the options below")
    slurm.add_argument("--nodes", type=int, metavar="N", help="nodes (NUM_SHARDS)")
    slurm.add_argument("--gpus-per-node", type=int, metavar="N", help="GPUs, and processes, on each (NUM_GPUS)")
    slurm.add_argument("--tasks-per-node", type=int, metavar="N", help="processes on each, on the CPU (NUM_PROCESSES)")
    slurm.add_argument("--partition", metavar="P")
    slurm.add_argument("--account", metavar="A")
    limit = "limit of one attempt: minutes, HH:MM:SS or D-HH:MM:SS (default: %(default)s)"
    slurm.add_argument("--time", default="1-00:00:00", metavar="T", help=limit)
    early = "save and requeue this many seconds before the limit (default: %(default)s)"
    slurm.add_argument("--signal", type=int, default=120, metavar="S", help=early)
    often = "how often to requeue after the limit (default: %(default)s)"
    slurm.add_argument("--max-timeouts", type=int, default=100, metavar="N", help=often)
    slurm.add_argument("--sbatch", action="append", default=[], metavar="KEY=VALUE", help="other options of sbatch")
    args = parser.parse_intermixed_args(argv)
    for name, value in vars(args).items():
        if is_key(value):  # for example when a variable of a script is empty
            parser.error(f"argument --{name}: no value before the key {value}")
    changed = {name for name, value in vars(args).items() if value != parser.get_default(name)}
    alone = changed & {action.dest for action in slurm._group_actions}
    if alone and not args.slurm:
        parser.error(f"--{sorted(alone)[0].replace('_', '-')} needs --slurm")
    return args


def main() -> int:
    """Run or submit the job.

    Returns:
        0; 2 for a wrong input, which ends in one message; 1 for a process that failed; 75 for a job that was
        interrupted and has saved. Ctrl-C twice exits with 130.
    """
    args = parse_args()
    prepare_streams()
    warn_of_another_package()
    # users do not need the source line of a warning
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    try:
        return execute(args)
    except ValueError as error:
        print_error(f"error: {error}")
        return 2
    except KeyboardInterrupt:  # before or after the job
        leave()


def warn_of_another_package() -> None:
    """Warn if this program is in one checkout and the package that it imports in another, as after pip install -e."""
    own, used = Path(__file__).resolve().parents[1], Path(slowfast.__file__).resolve().parents[1]
    first = os.environ.get("RANK", "0") == "0"  # torchrun starts this program once per rank
    if first and (own / "slowfast").is_dir() and own != used:
        print_error(f"warning: {__file__} uses the package in {used}: PYTHONPATH={own} uses the one beside it")


def execute(args: argparse.Namespace) -> int:
    """Show, submit or run the configuration of a command line; return the exit code."""
    try:
        cfg = load_config(args.cfg, all_overrides(args))
    except ConfigError as error:
        if args.show and error.cfg:  # the origins of values that contradict each other
            show(format_config(error.cfg))
        raise
    if args.show:
        show(format_config(cfg))
        return 0
    check_variables(cfg)
    check_packages(cfg)
    if args.find_batch:
        from slowfast.engine.batch_size import describe, find_batch

        show(describe(cfg, find_batch(cfg)))
        return 0
    if not cfg.TRAIN.ENABLE and not cfg.TEST.ENABLE:
        raise ValueError("TRAIN.ENABLE and TEST.ENABLE are both False: set one of them True")
    if args.slurm:
        from slowfast.run.slurm import submit

        if cfg.TRAIN.ENABLE and cfg.rate_note:
            print_error(f"warning: {cfg.rate_note}")  # the job reads the values only, not the recipe
        submit(cfg, args)
        return 0
    drawn = record_size(cfg)
    try:
        code = run_job(cfg, args.init_method)
    except Exception:
        draw(cfg, drawn)
        raise
    if code != EXIT_REQUEUE:
        ignore()
    draw(cfg, drawn, report=code != EXIT_REQUEUE)  # an interrupted job has little time
    return code


def run_job(cfg: CfgNode, init_method: str) -> int:
    """Run the job; return its exit code."""
    # only now: importing PyTorch takes seconds, and --show does not need it
    from slowfast.engine.test import test
    from slowfast.engine.train import train
    from slowfast.run.launch import AlreadyReported, JobError, launch

    try:
        launch(cfg, partial(train_and_test, train, test), init_method)
    except JobError as error:
        print_error(f"error: {error}")
        return 1
    except AlreadyReported:
        return 1
    except Interruption as stop:
        if os.environ.get("RANK", "0") == "0":
            origin = "; everything is saved" if stop.saved else " from the last checkpoint"
            print_error(f"interrupted; the same command continues the run{origin}")  # the log contains the reason
        return EXIT_REQUEUE
    return 0


def train_and_test(train: Callable[[CfgNode], object], test: Callable[[CfgNode], object], cfg: CfgNode) -> None:
    """Train and test as the configuration says, in one process of the job.

    The functions are arguments so that a spawned process imports the engine before it joins the others.
    """
    from slowfast.engine.test import test_folder
    from slowfast.run.lock import PATIENCE, hold

    if cfg.TRAIN.ENABLE:
        train(cfg)
    if cfg.TEST.ENABLE:
        # after days of training, wait for another test as long as the other ranks can
        patience = 30 * cfg.DIST_TIMEOUT if cfg.TRAIN.ENABLE else PATIENCE
        with hold(Path(cfg.OUTPUT_DIR, f"{test_folder(cfg)}.lock"), patience):
            test(cfg)


def all_overrides(args: argparse.Namespace) -> list[str]:
    """Return the KEY VALUE pairs of a command line, with those of `KEYS`.

    Raises:
        ValueError: two values for the same key.
    """
    if args.slurm and (args.shard_id is not None or args.init_method):
        raise ValueError("--shard_id and --init_method are for machines without Slurm; leave them out")
    given = {key: str(value) for key, value, _ in read_overrides(args.overrides, [])}
    pairs = list(args.overrides)
    for option, key in KEYS.items():
        value = getattr(args, option[2:].replace("-", "_"))
        if value is not None:
            if given.setdefault(key, str(value)) != str(value):
                raise ValueError(f"{option} {value} and {key} {given[key]} differ; leave {key} out")
            pairs += [key, str(value)]
    return pairs


def show(text: str) -> None:
    """Print; a reader such as head may exit before the end."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at the end of the program


def record_size(cfg: CfgNode) -> int:
    """Return the bytes of the record in OUTPUT_DIR; 0 if it cannot be read."""
    try:
        return Path(cfg.OUTPUT_DIR, "metrics.jsonl").stat().st_size
    except OSError:
        return 0


def draw(cfg: CfgNode, drawn: int, report: bool = True) -> None:
    """Write OUTPUT_DIR/curves.png and report.html in one process; a fault is only a warning.

    Nothing is written if the record still has `drawn` bytes: a job that was refused has no new values.
    """
    output_dir = Path(cfg.OUTPUT_DIR)
    if os.environ.get("RANK", "0") == "0" and cfg.SHARD_ID == 0 and record_size(cfg) != drawn:
        try:
            from slowfast.visualization.plots import plot_curves
            from slowfast.visualization.report import write_report

            plot_curves(output_dir, output_dir / "curves.png")
            if report:
                write_report(output_dir)
        except Exception as error:  # the results are written; no fault of their pictures may fail the job
            reason = str(error).partition("\n")[0]
            print_error(f"warning: the report is not complete ({type(error).__name__}: {reason})")


if __name__ == "__main__":
    sys.exit(main())
