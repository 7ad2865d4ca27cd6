"""A fault or a fact that one process finds reaches all processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from slowfast.utils.distributed import SharedError, on_main


@pytest.mark.slow
def test_two_processes_agree(call, tmp_path):
    done = call(Path(__file__).with_name("agreement.py"), tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_one_process_agrees_with_itself():
    assert on_main(lambda: 3) == 3
    with pytest.raises(SharedError, match="invalid literal"):
        on_main(lambda: int("x"))
    with pytest.raises(FileNotFoundError):
        on_main(lambda: Path("/nothing").read_text())
