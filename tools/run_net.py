"""Train and test a model: python tools/run_net.py --cfg exp/demo/config.yaml [KEY VALUE ...]."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from pathlib import Path

# Threads that wait for each other on a shared core had better sleep: OpenMP would spin, many times longer than the work
# takes. It has to be set before PyTorch is imported.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

from slowfast.config import check_variables, format_config, load_config_with_sources
from slowfast.config.load import read_overrides
from slowfast.config.rules import is_key
from slowfast.run.interrupt import EXIT_INTERRUPTED, EXIT_REQUEUE, INTERRUPTED, ignore, leave


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line; --num_shards and --shard_id are the official spelling of NUM_SHARDS and SHARD_ID."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--cfg", required=True, metavar="FILE", help="experiment, such as exp/demo/config.yaml")
    parser.add_argument("--show", action="store_true", help="print the resolved configuration and where it came from")
    parser.add_argument("--num_shards", help="machines of the job (NUM_SHARDS)")
    parser.add_argument("--shard_id", help="number of this machine (SHARD_ID)")
    parser.add_argument("--init_method", default="", metavar="tcp://HOST:PORT", help="meeting point of the machines")
    parser.add_argument("--opts", action="store_true", help="accepted before KEY VALUE, as in PySlowFast")
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="change configuration values")
    slurm = parser.add_argument_group("on a Slurm cluster")
    slurm.add_argument("--slurm", action="store_true", help="submit the job and return; the other options need it")
    slurm.add_argument("--nodes", type=int, metavar="N", help="nodes (NUM_SHARDS)")
    slurm.add_argument("--gpus-per-node", type=int, metavar="N", help="GPUs, and processes, on each (NUM_GPUS)")
    slurm.add_argument("--tasks-per-node", type=int, metavar="N", help="processes on each, on the CPU (NUM_PROCESSES)")
    slurm.add_argument("--partition", metavar="P")
    slurm.add_argument("--account", metavar="A")
    slurm.add_argument("--time", default="1-00:00:00", metavar="T", help="limit of one attempt: minutes, or HH:MM:SS")
    slurm.add_argument(
        "--signal", type=int, default=120, metavar="S", help="save and requeue S seconds before the limit"
    )
    slurm.add_argument("--max-timeouts", type=int, default=100, metavar="N", help="give up after so many limits")
    slurm.add_argument(
        "--sbatch", action="append", default=[], metavar="KEY=VALUE", help="any other option of sbatch, repeatable"
    )
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
        0; 2 for a fault of the user's, which ends in one message; 1 for a process that failed; 75 for a job that was
        asked to stop; 130 for Ctrl-C twice.
    """
    args = parse_args()
    overrides = list(args.overrides)
    for key, value in (("NUM_SHARDS", args.num_shards), ("SHARD_ID", args.shard_id)):
        if value is not None:
            overrides += [key, value]
    # the place in our code that warns says nothing to the person who runs it
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    try:
        if args.slurm:
            overrides += slurm_overrides(args, overrides)
        cfg, sources = load_config_with_sources(args.cfg, overrides)
        if args.show:
            show(format_config(cfg, sources))
            return 0
        check_variables(cfg)
        if not cfg.TRAIN.ENABLE and not cfg.TEST.ENABLE:
            raise ValueError(
                "TRAIN.ENABLE and TEST.ENABLE are both False, so there is nothing to do; set one of them True"
            )
        if args.slurm:
            from slowfast.run.slurm import submit

            submit(cfg, args)
            return 0
        return run(cfg, args.init_method)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(INTERRUPTED, file=sys.stderr)
        return EXIT_INTERRUPTED


def run(cfg, init_method: str) -> int:
    """Run the job here, as one process or many, and draw its curves; returns its exit code."""
    try:
        code = run_job(cfg, init_method)
    except Exception:  # not a second Ctrl-C, which does not wait
        draw_curves(cfg)
        raise
    if code != EXIT_REQUEUE:
        ignore()
    draw_curves(cfg)
    return code


def run_job(cfg, init_method: str) -> int:
    """Run the job; returns its exit code."""
    # Not before --show and configuration errors: importing the engine takes seconds.
    from slowfast.run.interrupt import Interruption
    from slowfast.run.launch import AlreadyReported, JobError, launch

    try:
        launch(cfg, init_method)
    except JobError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except AlreadyReported:
        return 1
    except Interruption as stop:
        if os.environ.get("RANK", "0") == "0":
            print(f"{stop.reason}; {stop.outlook}", file=sys.stderr)
        return EXIT_REQUEUE
    return 0


def slurm_overrides(args: argparse.Namespace, overrides: list[str]) -> list[str]:
    """The KEY VALUE pairs that the options for Slurm decide.

    Raises:
        ValueError: the command line gives another value for the same key.
    """
    options = (
        ("NUM_SHARDS", "--nodes", args.nodes),
        ("NUM_GPUS", "--gpus-per-node", args.gpus_per_node),
        ("NUM_PROCESSES", "--tasks-per-node", args.tasks_per_node),
    )
    if args.shard_id is not None or args.init_method:
        raise ValueError("--shard_id and --init_method are for machines without Slurm; leave them out")
    given = {key: str(value) for key, value, _ in read_overrides(overrides, [])}
    decided = []
    for key, option, value in options:
        if value is None:
            continue
        if given.get(key, str(value)) != str(value):
            raise ValueError(f"{option} {value} and {key} {given[key]} differ; leave {key} out")
        decided += [key, str(value)]
    return decided


def show(text: str) -> None:
    """Print; a reader such as head may have had enough before the end."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at the end of the program


def draw_curves(cfg) -> None:
    """Draw OUTPUT_DIR/curves.png from what was logged so far, in one process of the job; a full disk costs no more."""
    output_dir = Path(cfg.OUTPUT_DIR)
    if os.environ.get("RANK", "0") == "0" and cfg.SHARD_ID == 0 and os.path.isfile(output_dir / "metrics.jsonl"):
        from slowfast.visualization.plots import plot_curves

        try:
            plot_curves(output_dir, output_dir / "curves.png")
        except OSError as error:
            print(f"warning: the curves could not be drawn: {error}", file=sys.stderr)


if __name__ == "__main__":
    code = main()
    if code == EXIT_INTERRUPTED:
        leave()
    sys.exit(code)
