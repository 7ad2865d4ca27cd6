"""Compute features in an array of Slurm tasks."""

from __future__ import annotations

import argparse
import secrets
from dataclasses import dataclass, field
from pathlib import Path

from submitit import SlurmExecutor
from submitit.core.utils import FailedSubmissionError, UncompletedJobError

from slowfast.inference.command import report_bad
from slowfast.inference.extract import finish, run_part
from slowfast.run.slurm import minutes, sbatch_parameters


@dataclass
class Task:
    """One task of the array: every n-th video. A repeated or requeued task continues."""

    args: argparse.Namespace
    names: dict[str, str]
    parts: int
    array: str = field(default_factory=lambda: secrets.token_hex(4))

    def __call__(self, part: int) -> int:
        """Write the features of a part, and collect what is finished so far.

        The task that ends last writes the one file. If two tasks end together, both may find that they are the last
        one; then both write the same content.
        """
        bad = run_part(self.args, self.names, part, self.parts)
        ended = Path(self.args.out, "slurm", f"ended_{self.array}")
        ended.mkdir(parents=True, exist_ok=True)
        (ended / str(part)).touch()
        finish(self.args, self.names, store=len([*ended.iterdir()]) == self.parts)
        return report_bad(bad)


def submit(args: argparse.Namespace, names: dict[str, str]) -> None:
    """Submit the array, and print how to follow it.

    Raises:
        ValueError: Slurm is not available, or rejects the job.
    """
    folder = Path(args.out, "slurm").absolute()
    try:
        executor = SlurmExecutor(folder)
    except RuntimeError as error:
        raise ValueError("--slurm needs a Slurm cluster, and there is no srun in PATH: use its login node") from error
    named = {"partition": args.partition, "account": args.account, "gpus_per_node": 1 if args.gpus else None}
    executor.update_parameters(
        job_name="slowfast-features",
        time=minutes(args.time),
        array_parallelism=args.slurm,
        stderr_to_stdout=True,
        additional_parameters=sbatch_parameters(args.sbatch),
        **{key: value for key, value in named.items() if value is not None},
    )
    parts = min(args.slurm, len(names))
    try:
        jobs = executor.map_array(Task(args, names, parts), range(parts))
    except (FailedSubmissionError, UncompletedJobError) as error:
        raise ValueError(f"Slurm refused the array: {str(error).strip()}") from None
    first = jobs[0].job_id.partition("_")[0]
    print(f"submitted array {first} of {parts} tasks; logs in {folder}\n  state   squeue -j {first}")
