"""JSON files are readable for people, and keep every name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from slowfast.utils.io import atomic_path, guarded, write_json

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", [b"\xe9.mp4", b"\xff\xc3", "a\\\udce9", "\ud83d", "\x85\u2028\u2029\t\x7f", "\\u00e9"])
def test_json_shows_letters_and_keeps_every_name(tmp_path, name):
    value = {"Übergang, süß, 日本, 😀": [os.fsdecode(name), "Größe", float("nan")]}
    write_json(tmp_path / "a.json", value)
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert all(word in text for word in ("Übergang, süß, 日本, 😀", "Größe")) and len(text.splitlines()) == 7
    assert json.loads(text) == {key: [*names[:2], None] for key, names in value.items()}


@pytest.mark.parametrize("umask", [0o077, 0o002])
def test_the_umask_decides_who_may_read_and_write_results(tmp_path, umask):
    before = os.umask(umask)
    try:
        write_json(tmp_path / "a", 1)
        with atomic_path(tmp_path / "b") as part:
            save_file({"a": np.zeros(1)}, part)  # it makes private files
    finally:
        os.umask(before)
    assert [oct((tmp_path / name).stat().st_mode & 0o777) for name in "ab"] == [oct(0o666 & ~umask)] * 2


def test_closed_standard_streams_do_not_become_results(tmp_path):
    """Neither in the process nor in one that it starts."""
    program = (
        "import os, subprocess, sys\nfrom slowfast.utils.io import prepare_streams\nprepare_streams()\n"
        "with open('result', 'w') as file:\n"
        "    print(file.fileno(), file=file, flush=True)\n"
        "    print(sys.stdin.read(), flush=True)\n    print('\\udce9', file=sys.stderr)\n"
        "    subprocess.run(['sh', '-c', 'echo noise; echo noise >&2'], check=True)\n"
    )
    command = ["bash", "-c", 'exec "$@" <&- >&- 2>&-', "bash", sys.executable, "-c", program]
    done = subprocess.run(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0 and int((tmp_path / "result").read_text()) > 2


@pytest.mark.parametrize(("lines", "piped", "expected"), [(1, "cat", 3), (1, "true", 141), (100_000, "head -n 1", 141)])
def test_program_ends_quietly_if_the_reader_of_its_output_exits(lines, piped, expected):
    program = (
        "import sys, time\nfrom slowfast.utils.io import guarded\ntime.sleep(0.3)\n"
        f"def run():\n    for _ in range({lines}):\n        print('line')\n    return 3\n"
        "sys.exit(guarded(run))"
    )
    command = [
        "bash",
        "-c",
        f'"$@" | {piped} > /dev/null; exit ${{PIPESTATUS[0]}}',
        "bash",
        sys.executable,
        "-c",
        program,
    ]
    done = subprocess.run(command, capture_output=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert (done.returncode, done.stderr) == (expected, b"")


def test_broken_pipe_to_another_process_is_an_error(capfd):
    def run():
        raise BrokenPipeError(32, "a worker exited")

    assert guarded(run) == 2 and "a worker exited" in capfd.readouterr().err
