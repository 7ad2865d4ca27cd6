"""Find the configuration and the weights of a trained network from its folder, file, name or address."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fvcore.common.config import CfgNode

import slowfast
from slowfast.config import load_config, recorded_config
from slowfast.engine.test import find_checkpoint
from slowfast.models.options import close_to
from slowfast.run.checkpoint import checkpoint_dir, official_best
from slowfast.weights.fetch import fetch_checkpoint, released_weights
from slowfast.weights.released import identify
from slowfast.weights.tensors import load_tensors

# The files of a network that is shared as a folder; the metadata of the tensors contain "class_names" as a JSON list.
SHARED_CONFIG, SHARED_WEIGHTS = "config.yaml", "model.safetensors"
RESOLVED = "resolved_config.yaml"
WEIGHTS_OF = re.compile(r"^# Weights: +(\S+)", re.MULTILINE)  # in the first lines of the config.yaml of an experiment


@dataclass(frozen=True)
class Source:
    """A trained network that is not built yet.

    Attributes:
        cfg: the configuration of its training and test.
        weights: path, name or address of its weights, see `load_tensors`.
    """

    cfg: CfgNode
    weights: str


def find_source(source: str, experiment: str | None = None, overrides: Sequence[str] = ()) -> Source:
    """Find a trained network.

    Args:
        source: OUTPUT_DIR of a run; a checkpoint; a name or file of released weights; a folder with config.yaml and
            model.safetensors, or hf://OWNER/NAME[@REVISION] with these files.
        experiment: name of a folder of exp/, or path of a configuration; needed only for weights without a
            configuration whose name is not that of released ones.
        overrides: KEY VALUE KEY VALUE ..., which change the configuration.

    Raises:
        ValueError: there is no such network, or its configuration is not known.
    """
    if re.fullmatch(r"hf://[^/]+/[^/]+", source):
        source = _fetch_folder(source)
    folder = Path(source)
    if not folder.is_dir():
        return _of_file(source, experiment, overrides)
    if (folder / SHARED_CONFIG).is_file() and (folder / SHARED_WEIGHTS).is_file():
        return Source(_read(folder / SHARED_CONFIG, overrides), str(folder / SHARED_WEIGHTS))
    return _of_run(folder, experiment, overrides)


def _of_run(folder: Path, experiment: str | None, overrides: Sequence[str]) -> Source:
    """Return what a test of this OUTPUT_DIR would test."""
    resolved = [path for path in (folder / RESOLVED, folder / "test" / RESOLVED) if path.is_file()]
    if experiment:
        cfg = _read(experiment_file(experiment), overrides)
    elif resolved:
        cfg = _read(resolved[0], overrides)
    elif checkpoint_dir(str(folder)).is_dir() or official_best(str(folder)).is_file():
        return _of_file(find_checkpoint(_moved(load_config(None), folder)), None, overrides)
    else:
        raise ValueError(
            f"{folder} contains no trained network: give the OUTPUT_DIR of a run (with {RESOLVED} and checkpoints/), a "
            f"folder with {SHARED_CONFIG} and {SHARED_WEIGHTS}, or a file"
        )
    cfg = _moved(cfg, folder)
    return Source(cfg, find_checkpoint(cfg))


def _moved(cfg: CfgNode, folder: Path) -> CfgNode:
    """Return a configuration whose OUTPUT_DIR is where the folder is now."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.OUTPUT_DIR = str(folder)
    cfg.freeze()
    return cfg


def _of_file(source: str, experiment: str | None, overrides: Sequence[str]) -> Source:
    if experiment:
        return Source(_read(experiment_file(experiment), overrides), source)
    entry = identify(source)
    if entry is None or source not in released_weights():
        recorded = load_tensors(fetch_checkpoint(source), shapes_only=True).get("cfg")
        if isinstance(recorded, str):
            cfg, _ = recorded_config(recorded)
            cfg.merge_from_list(overrides)
            cfg.freeze()
            return Source(cfg, source)
    if entry is None:
        raise ValueError(
            f"{source} contains weights without their configuration: name the experiment that trained them "
            "(--experiment NAME, in Python experiment=NAME)"
        )
    folders = {name: path for path in _experiments() if (name := _weights_of(path))}
    if entry["name"] not in folders:
        raise ValueError(
            f"no experiment of exp/ uses the weights {entry['name']}: name one of the same network, frames and classes "
            "(--experiment NAME, in Python experiment=NAME)"
        )
    return Source(_read(_with_views(folders[entry["name"]]), overrides), source)


def _fetch_folder(address: str) -> str:
    """Return the local folder of hf://OWNER/NAME[@REVISION], downloaded into the cache of huggingface_hub."""
    import huggingface_hub  # slow to import

    repository, _, revision = address.removeprefix("hf://").partition("@")
    try:
        files = [
            huggingface_hub.hf_hub_download(repository, name, revision=revision or None)
            for name in (SHARED_CONFIG, SHARED_WEIGHTS)
        ]
    except Exception as error:  # any type: the exceptions come from its HTTP client, which differs between versions
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{address} cannot be downloaded ({first}): check the address, or give a local folder"
        ) from error
    return str(Path(files[0]).parent)


def _read(path: Path, overrides: Sequence[str]) -> CfgNode:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # keys of the training that have no effect here
        return load_config(path, overrides)


def _experiments() -> list[Path]:
    """Return the folders of exp/, which a wheel contains inside the package and a checkout beside it."""
    package = Path(slowfast.__file__).parent
    places = (package / "exp", package.parent / "exp")
    return sorted(path.parent for place in places for path in place.glob("*/config.yaml"))


def _weights_of(folder: Path) -> str:
    found = WEIGHTS_OF.search((folder / "config.yaml").read_text(encoding="utf-8")[:1000])
    return found[1] if found else ""


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
    known = {folder.name: folder for folder in _experiments()}
    if name not in known:
        raise ValueError(f"experiment {name!r} is not known{close_to(name, known)}: give a folder of exp/ or a file")
    return _with_views(known[name])
