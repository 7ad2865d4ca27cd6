"""Share a trained network: a folder with its configuration, weights and model card, and its upload to the Hub."""

from __future__ import annotations

import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

import jinja2
from fvcore.common.config import CfgNode

from slowfast.config import dump_config
from slowfast.config.keys import DEFAULT_VALUES, leaves
from slowfast.inference.export import metadata, write_tensors
from slowfast.inference.load import SHARED_CONFIG, SHARED_WEIGHTS
from slowfast.inference.network import Network, with_values
from slowfast.utils.io import atomic_path, sha256, write_text
from slowfast.utils.profiling import count_parameters
from slowfast.visualization.outcomes import (
    MultiLabelOutcomes,
    Outcomes,
    class_rows,
    confusion,
    precision_rows,
    read_outcomes,
)
from slowfast.visualization.runs import percentages
from slowfast.weights.fetch import fetch

CARD = "README.md"
# Keys of paths, which do not exist on another machine.
PLACES = (
    "OUTPUT_DIR", "DATA.PATH_TO_DATA_DIR", "DATA.PATH_PREFIX", "TRAIN.CHECKPOINT_FILE_PATH",
    "TEST.CHECKPOINT_FILE_PATH", "TENSORBOARD.LOG_DIR",
)  # fmt: skip


def save_folder(net: Network, folder: str | os.PathLike[str], name: str = "", licence: str | None = None) -> None:
    """Write config.yaml, model.safetensors and the model card README.md, if there is none yet.

    `name` is OWNER/NAME on the Hub, or "". For `licence`, see `Network.save_pretrained`.
    """
    folder = Path(folder)
    write_text(folder / SHARED_CONFIG, dump_config(shared_config(net.cfg)))
    with atomic_path(folder / SHARED_WEIGHTS) as part:
        write_tensors(net.model, metadata(net), part)
    if not (folder / CARD).exists():
        write_text(folder / CARD, model_card(net, name or folder.resolve().name, name or "OWNER/NAME", licence))


def upload(net: Network, name: str, folder: str | os.PathLike[str] | None, licence: str | None, private: bool) -> str:
    """Upload a network to the Hugging Face Hub; see `Network.push_to_hub`."""
    if not re.fullmatch(r"[^/\s]+/[^/\s@]+", name):
        raise ValueError(f"{name!r} is not a name on the Hub: give OWNER/NAME")
    with tempfile.TemporaryDirectory() as made:
        place = Path(folder or made)
        save_folder(net, place, name, licence)
        import huggingface_hub  # slow to import

        api = huggingface_hub.HfApi()
        try:
            api.create_repo(name, private=private, exist_ok=True)
            api.upload_folder(repo_id=name, folder_path=place, allow_patterns=[SHARED_CONFIG, SHARED_WEIGHTS, CARD])
        except Exception as error:  # any type: the exceptions come from its HTTP client, which differs between versions
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ValueError(
                f"{name} cannot be uploaded ({first}): log in with `hf auth login`, as a user who may write to it"
            ) from error
    return f"hf://{name}"


def shared_config(cfg: CfgNode) -> CfgNode:
    """Return a configuration in which paths of this machine are replaced by the defaults."""
    local = [
        key
        for key, value in leaves(cfg).items()
        if key in PLACES or (isinstance(value, str) and os.path.isabs(os.path.expanduser(value)))
    ]
    return with_values(cfg, *(part for key in local for part in (key, DEFAULT_VALUES[key])))


def model_card(net: Network, title: str, name: str, licence: str | None) -> str:
    """Return the model card of a network, with the results of the test in OUTPUT_DIR if it was of these weights."""
    from huggingface_hub import EvalResult, ModelCardData  # slow to import

    cfg, test = net.cfg, test_results(net)
    task = "image-classification" if net.is_image else "video-classification"  # names of the Hub
    shown = accuracies(test)
    # not TEST.DATASET: own videos are read by the row of a public data set
    tested = f"{test['metrics']['num_labelled']} samples of {cfg.MODEL.NUM_CLASSES} classes" if shown else ""
    results = [
        EvalResult(
            task, "custom", tested, metric if metric == "mAP" else "accuracy", round(value, 3), metric_name=metric
        )
        for metric, value in shown.items()
    ]
    data = ModelCardData(
        model_name=title,
        license=licence,
        pipeline_tag=task,
        tags=[task, cfg.MODEL.MODEL_NAME],
        eval_results=results or None,
    )
    outcomes = read_outcomes(Path(cfg.OUTPUT_DIR, "test", "scores.npz")) if shown else None
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return environment.get_template("model_card.jinja").render(
        data=data.to_yaml(),
        title=title,
        name=name,
        licence=licence,
        cfg=cfg,
        network=type(net.model).__name__,
        parameters=count_parameters(net.model),
        about=metadata(net),
        accuracies=shown,
        test=test,
        precisions=precision_rows(outcomes) if isinstance(outcomes, MultiLabelOutcomes) else [],
        classes=class_rows(outcomes, confusion(outcomes)) if isinstance(outcomes, Outcomes) else [],
    )


def test_results(net: Network) -> dict[str, Any]:
    """Return the content of OUTPUT_DIR/test/metrics.json if it is of the weights of this network, else nothing."""
    try:
        found = json.loads(Path(net.cfg.OUTPUT_DIR, "test", "metrics.json").read_bytes())
        return found if found["checkpoint"]["sha256"] == sha256(fetch(net.weights)) else {}
    except (OSError, ValueError, KeyError):
        return {}


def accuracies(test: dict[str, Any]) -> dict[str, float]:
    """Return the metrics in percent of a test with labels; top-5 is called topK for K < 5 classes."""
    metrics = test.get("metrics", {})
    if not metrics.get("num_labelled"):
        return {}
    names = {"top5": f"top{metrics.get('top5_k', 5)}"}
    return {names.get(name, name): value for name, value in percentages(metrics).items()}
