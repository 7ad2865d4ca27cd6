"""slowfast-doctor reports every check, and its exit code says whether something is broken."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import doctor
import pytest
import torch
from torch import nn

from slowfast.config import load_config
from slowfast.models.depthwise import depthwise_conv

ROOT = Path(__file__).parents[2]


def run(monkeypatch: pytest.MonkeyPatch, *checks) -> int:
    monkeypatch.setattr(doctor, "CHECKS", checks)
    monkeypatch.setattr(sys, "argv", ["slowfast-doctor"])
    return doctor.main()


def test_a_check_that_raises_is_broken_and_the_others_run(monkeypatch, capsys):
    def raises():
        raise OSError("no such device")
        yield

    assert run(monkeypatch, raises, doctor.machine) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "no such device" in lines[1] and any("open files" in line for line in lines[2:])
    assert lines[0] == lines[-1] == "```"


def test_notes_are_not_faults(monkeypatch):
    assert run(monkeypatch, lambda: iter([doctor.Finding(doctor.NOTE, "little space")])) == 0


@pytest.mark.parametrize("layer", [nn.Conv3d(64, 64, 5, padding=2), depthwise_conv(64, 5, ndim=3)])
def test_the_error_of_a_convolution_is_that_of_its_precision(layer):
    assert 0 < doctor.rounding_error(layer, torch.device("cpu"), torch.float64) < 1e-4


def test_the_cure_of_wrong_convolutions_can_be_applied(monkeypatch):
    monkeypatch.setattr(doctor, "WRONG", 0)
    notes = [finding.text for finding in doctor.devices() if "bfloat16" in finding.text]
    assert len(notes) == 2
    for note in notes:
        assert load_config(None, re.findall(r"TRAIN\.AMP_DTYPE \w+", note)[0].split())


def test_the_packages_of_this_environment_fit():
    assert [finding.state for finding in doctor.versions() if finding.state != doctor.OK] == []


@pytest.mark.parametrize(
    ("torch_version", "torchvision_version", "builds", "end"),
    [
        ("2.13.0+cpu", "0.28.0", True, "torchvision --index-url https://download.pytorch.org/whl/cpu"),
        ("2.13.0", "0.28.0+cpu", True, "torchvision"),
        ("2.12.0+cu126", "0.28.0", False, "torchvision --index-url https://download.pytorch.org/whl/cu126"),
        ("2.12.0a0+git1a2b", "0.28.0", False, "torchvision"),
        ("2.13.0", "not installed", False, "torchvision"),
    ],
)
def test_packages_that_do_not_fit_have_a_cure(torch_version, torchvision_version, builds, end):
    text = doctor.describe_pair(torch_version, torchvision_version, "no operator nms")
    assert ("builds" in text) == builds and text.endswith(f"pip install --force-reinstall torch {end}")


@pytest.mark.slow
def test_the_doctor_finds_this_machine_well(call, tmp_path):
    done = call(ROOT / "tools/doctor.py", environment={"SLURM_JOB_ID": ""}, folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "decoder pyav" in done.stdout and "all-reduce by gloo, 2 processes" in done.stdout
    assert not list(tmp_path.iterdir())
