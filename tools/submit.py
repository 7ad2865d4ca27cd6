"""Submit tools/run_net.py to Slurm with the options of the UniFormer repository's submit.py (its file is summit.py)."""

from __future__ import annotations

import argparse
import runpy
import sys

# Official option -> option of run_net.py; options of the authors' cluster and log files have no effect.
OPTIONS = {
    "cfg": "--cfg={}",
    "num_shards": "--nodes={}",
    "num_gpus": "--gpus-per-node={}",
    "partition": "--partition={}",
    "timeout": "--time={}",
    "name": "--sbatch=job-name={}",
    "qos": "--sbatch=qos={}",
    "comment": "--sbatch=comment={}",
    "mail": "--sbatch=mail-user={}",
    "job_dir": "",
    "resume-from": "",
    "resume-job": "",
    "postfix": "",
}


def translate(argv: list[str] | None = None) -> list[str]:
    """Return the arguments of run_net.py for those of submit.py."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    for option, ours in OPTIONS.items():
        text = f"passed on as {ours.format('VALUE')}" if ours else "accepted, without effect"
        parser.add_argument(f"--{option}", dest=option, metavar="VALUE", help=text)
    parser.add_argument("--use_volta32", action="store_true", help="accepted, without effect")
    given, others = parser.parse_known_args(argv)
    chosen = {option: value for option, value in vars(given).items() if value and OPTIONS.get(option)}
    return [*(OPTIONS[option].format(value) for option, value in chosen.items()), "--slurm", *others]


if __name__ == "__main__":
    sys.argv = [f"{sys.path[0]}/run_net.py", *translate()]
    runpy.run_path(sys.argv[0], run_name="__main__")
