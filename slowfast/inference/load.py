"""Load a trained network with everything that its predictions depend on."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch

from slowfast.engine.setup import place
from slowfast.engine.test import load_model
from slowfast.inference.network import Network
from slowfast.inference.sources import find_source
from slowfast.utils import distributed
from slowfast.utils.class_names import read_class_names


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
        class_names: names of the classes, or a file of them, whose order the outputs get; None takes the names and the
            order of the weights.
        overrides: KEY VALUE KEY VALUE ..., which change the configuration, for example TEST.NUM_ENSEMBLE_VIEWS 1.

    Returns:
        The network in evaluation mode.

    Raises:
        ValueError: there is no such network, its configuration is not known, or its weights do not fit.
    """
    found = find_source(str(source), experiment, list(overrides))
    if device is None and torch.cuda.is_available():
        device = distributed.device(1)
    where = torch.device(device or "cpu")
    cfg = found.cfg.clone()
    cfg.defrost()
    cfg.NUM_GPUS = int(where.type == "cuda")
    cfg.TEST.CHECKPOINT_FILE_PATH = found.weights
    cfg.TEST.SHUFFLE_FRAMES = False
    cfg.DATA.CHECK_FILES = False
    cfg.freeze()
    names = read_class_names(class_names) if isinstance(class_names, str) else class_names
    model, _, known = load_model(cfg, found.weights, names)
    place(model, where)
    return Network(model.eval(), cfg, known, where, found.weights)
