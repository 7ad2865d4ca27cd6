"""Load a trained network, which is given by its folder, file, name or address."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from fvcore.common.config import CfgNode

import slowfast
from slowfast.config import check_values, load_config, recorded_config
from slowfast.datasets.container import first_line
from slowfast.engine.setup import place
from slowfast.engine.test import find_checkpoint, load_model
from slowfast.inference.network import Network, with_values
from slowfast.run.checkpoint import checkpoint_dir, official_best
from slowfast.utils import distributed
from slowfast.utils.class_names import read_class_names
from slowfast.utils.tables import close_to
from slowfast.weights.class_order import order_of_part
from slowfast.weights.fetch import fetch, fetch_checkpoint, released_weights
from slowfast.weights.released import identify
from slowfast.weights.tensors import load_tensors

# The files of a network that is shared as a folder; the metadata of the tensors contain "class_names" as a JSON list.
SHARED_CONFIG, SHARED_WEIGHTS = "config.yaml", "model.safetensors"
RESOLVED = "resolved_config.yaml"


def load(
    source: str | os.PathLike[str],
    experiment: str | None = None,
    *,
    device: str | torch.device | None = None,
    class_names: str | Sequence[str] | None = None,
    overrides: Sequence[str] = (),
) -> Network:
    """Load a trained network with its class names, transform, sampling and views.

    Args:
        source: OUTPUT_DIR of a run; a checkpoint; a name of released weights (`slowfast/weights/released.json`), or a
            file of them; a folder with config.yaml and model.safetensors, or hf://OWNER/NAME with these files.
        experiment: name of a folder of exp/, or path of a configuration, for weights whose configuration is not known.
        device: "cpu", "cuda" or "cuda:N"; None is the GPU if there is one.
        class_names: names of the classes, or a file of them. The outputs of released weights are put into their order;
            a network that has class names must have the same ones in the same order. None takes those of the weights.
        overrides: KEY VALUE KEY VALUE ..., which change the configuration, for example TEST.NUM_ENSEMBLE_VIEWS 1.

    Returns:
        The network in evaluation mode. The state of the random generators does not change.

    Raises:
        ValueError: there is no such network, its configuration is not known, or its weights or class names do not fit.
    """
    cfg, weights = _find(str(source), experiment, overrides)
    where = find_device(device)
    cfg = with_values(
        cfg,
        "NUM_GPUS", int(where.type == "cuda"), "TEST.CHECKPOINT_FILE_PATH", weights, "TEST.SHUFFLE_FRAMES", False,
        "DATA.CHECK_FILES", False,
    )  # fmt: skip
    names = read_class_names(class_names) if isinstance(class_names, str) else class_names
    if names is not None and len(names) != cfg.MODEL.NUM_CLASSES:
        raise ValueError(
            f"{len(names)} class names for a network of {cfg.MODEL.NUM_CLASSES} classes: give one name per class, or "
            "none if the weights contain them (--class-names FILE, in Python class_names=NAMES)"
        )
    # A network of a user may load its teacher in a step of a training. The random initial values, which the weights
    # replace, must not change the dropout of that step, or a resumed run would differ from an uninterrupted one.
    with torch.random.fork_rng(devices=[]):
        model, order, known = load_model(cfg, weights, names)
    if order and order.name and known is None:
        model.class_order = order_of_part(order.name, cfg.MODEL.NUM_CLASSES) or order.name  # pyright: ignore
    place(model, where)
    return Network(model.eval(), cfg, known, where, weights)


def find_device(device: str | torch.device | None) -> torch.device:
    """Return a device of this machine; None is the GPU if there is one.

    Raises:
        ValueError: the machine does not have the device.
    """
    if device is None:
        return distributed.device(int(torch.cuda.is_available()))
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {str(device)!r} cannot be used ({first_line(error)}): give cpu") from None
    return torch.device(device)


def _find(source: str, experiment: str | None, overrides: Sequence[str]) -> tuple[CfgNode, str]:
    """Return the configuration of a trained network, and the path, name or address of its weights; see `load`."""
    if re.fullmatch(r"hf://[^/]+/[^/]+", source):
        files = [fetch(f"{source}/{name}") for name in (SHARED_CONFIG, SHARED_WEIGHTS)]
        source = os.path.dirname(files[0])
    folder = Path(source)
    if not folder.is_dir():
        return _of_file(source, experiment, overrides)
    if (folder / SHARED_CONFIG).is_file() and (folder / SHARED_WEIGHTS).is_file():
        return _read(folder / SHARED_CONFIG, overrides), str(folder / SHARED_WEIGHTS)
    return _of_run(folder, experiment, overrides)


def _of_run(folder: Path, experiment: str | None, overrides: Sequence[str]) -> tuple[CfgNode, str]:
    """Return what a test of this OUTPUT_DIR would test."""
    resolved = [path for path in (folder / RESOLVED, folder / "test" / RESOLVED) if path.is_file()]
    if experiment:
        cfg = _read(experiment_file(experiment), overrides)
    elif resolved:
        cfg = _read(resolved[0], overrides)
    elif checkpoint_dir(str(folder)).is_dir() or official_best(str(folder)).is_file():
        return _of_file(find_checkpoint(with_values(load_config(None), "OUTPUT_DIR", str(folder))), None, overrides)
    else:
        raise ValueError(
            f"{folder} contains no trained network: give the OUTPUT_DIR of a run (with {RESOLVED} and checkpoints/), a "
            f"folder with {SHARED_CONFIG} and {SHARED_WEIGHTS}, or a file"
        )
    cfg = with_values(cfg, "OUTPUT_DIR", str(folder))  # where it is now
    return cfg, find_checkpoint(cfg)


def _of_file(source: str, experiment: str | None, overrides: Sequence[str]) -> tuple[CfgNode, str]:
    if experiment:
        return _read(experiment_file(experiment), overrides), source
    entry = identify(source)
    if entry is None or source not in released_weights():
        recorded = load_tensors(fetch_checkpoint(source), shapes_only=True).get("cfg")
        if isinstance(recorded, str):
            cfg = with_values(recorded_config(recorded)[0], *overrides)
            check_values(cfg, source)
            return cfg, source
    if entry is None:
        raise ValueError(
            f"{source} contains weights without their configuration: name the experiment that trained them "
            "(--experiment NAME, in Python experiment=NAME)"
        )
    uses = rf"^# Weights: +{re.escape(entry['name'])}$"  # one of the first lines of a config.yaml
    files = {folder: (folder / "config.yaml").read_text(encoding="utf-8") for folder in _experiments().values()}
    folder = next((folder for folder, text in files.items() if re.search(uses, text, re.MULTILINE)), None)
    if folder is None:
        raise ValueError(
            f"no experiment of exp/ uses the weights {entry['name']}: name one of the same network, frames and classes "
            "(--experiment NAME, in Python experiment=NAME)"
        )
    return _read(_with_views(folder), overrides), source


def _read(path: Path, overrides: Sequence[str]) -> CfgNode:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # keys of the training that have no effect here
        return load_config(path, overrides, training=False)


def _experiments() -> dict[str, Path]:
    """Return name -> folder of exp/, which a wheel contains inside the package and a checkout beside it."""
    package = Path(slowfast.__file__).parent
    places = (package / "exp", package.parent / "exp")
    return {path.parent.name: path.parent for place in places for path in sorted(place.glob("*/config.yaml"))}


def _with_views(folder: Path) -> Path:
    """Return the configuration of an experiment with the views of its reported accuracy."""
    return next(path for path in (folder / "test.yaml", folder / "config.yaml") if path.is_file())


def experiment_file(name: str) -> Path:
    """Return the configuration of an experiment, given by its name or path.

    Raises:
        ValueError: there is none.
    """
    path = Path(name)
    if path.is_file():
        return path
    if (path / "config.yaml").is_file():
        return _with_views(path)
    known = _experiments()
    if name not in known:
        raise ValueError(f"experiment {name!r} is not known{close_to(name, known)}: give a folder of exp/ or a file")
    return _with_views(known[name])
