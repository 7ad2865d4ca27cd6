"""Share a trained network: a folder with its configuration, weights and model card, and its upload to the Hub."""

from __future__ import annotations

import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

from fvcore.common.config import CfgNode

from slowfast.config import dump_config
from slowfast.config.keys import DEFAULT_VALUES, leaves
from slowfast.inference.export import metadata, write_tensors
from slowfast.inference.load import SHARED_CONFIG, SHARED_WEIGHTS
from slowfast.inference.network import Network
from slowfast.utils.io import atomic_path, sha256, write_text
from slowfast.utils.profiling import count_parameters
from slowfast.visualization.compare import markdown
from slowfast.visualization.outcomes import (
    MultiLabelOutcomes,
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
TASK = "video-classification"  # name of the Hub
LICENCE = """\
Write the licence here, and its identifier as `license: NAME` into the first lines of this file. The terms of the
training data, and of the weights from which the training started, apply too.
"""
USE = """\
```python
import slowfast

net = slowfast.load("{source}")
for found in net.predict("video.mp4").top:
    print(found.name, found.probability)
```

From the shell: `slowfast-predict video.mp4 --weights {source}`.
"""


def save_folder(net: Network, folder: str | os.PathLike[str], name: str = "", licence: str | None = None) -> None:
    """Write config.yaml, model.safetensors and the model card README.md, if there is none yet; see `slowfast.load`.

    Args:
        net: the network.
        folder: to write into.
        name: OWNER/NAME on the Hub, for the card; "" if it is not known.
        licence: identifier of the Hub, for example "apache-2.0"; None leaves a line to fill in.
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
    cfg = cfg.clone()
    cfg.defrost()
    for key, value in leaves(cfg).items():
        if key in PLACES or (isinstance(value, str) and os.path.isabs(os.path.expanduser(value))):
            cfg.merge_from_list([key, DEFAULT_VALUES[key]])
    cfg.freeze()
    return cfg


def model_card(net: Network, title: str, name: str, licence: str | None) -> str:
    """Return the model card of a network, with the results of the test of its weights in OUTPUT_DIR, if there is one.

    Args:
        net: the network.
        title: of the card.
        name: OWNER/NAME on the Hub.
        licence: see `save_folder`.
    """
    from huggingface_hub import EvalResult, ModelCardData  # slow to import

    cfg, test = net.cfg, test_results(net)
    results = [
        EvalResult(TASK, cfg.TEST.DATASET, cfg.TEST.DATASET, kind, round(value, 3), metric_name=metric)
        for metric, value in accuracies(test).items()
        for kind in (metric if metric == "mAP" else "accuracy",)
    ]
    data = ModelCardData(
        model_name=title,
        license=licence,
        pipeline_tag=TASK,
        tags=[TASK, net.cfg.MODEL.MODEL_NAME],
        eval_results=results or None,
    )
    classes = cfg.MODEL.NUM_CLASSES
    shape = " x ".join(map(str, metadata(net)["shape"]))
    parts = [
        f"---\n{data.to_yaml()}\n---\n\n# {title}",
        f"{type(net.model).__name__} with {count_parameters(net.model):,} parameters: clips of {shape} "
        f"(channels, frames, height, width) -> {classes} classes.",
        "## Use\n\n" + USE.format(source=f"hf://{name}"),
        "## Data and views\n\n" + markdown(_settings(net)),
        *_result_parts(net, test),
        f"## Licence\n\n{licence or LICENCE}",
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


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


def _settings(net: Network) -> list[list[str]]:
    about = metadata(net)
    rows = [
        ["subject", "value"],
        ["training data (`TRAIN.DATASET`)", net.cfg.TRAIN.DATASET],
        ["mean, standard deviation", f"{about['mean']}, {about['std']} ({about['channel_order']})"],
    ]
    if not net.is_image:
        dense = (
            f"each {about['sampling_rate']} after the one before"
            if about["sampling"] == "dense"
            else "one of each equal part"
        )
        rows.append(["frames of a clip", f"{net.cfg.DATA.NUM_FRAMES}, {dense}"])
        rows.append(["clips of a video", f"{about['views']} in time x {about['crops']} crops"])
    return rows


def _result_parts(net: Network, test: dict[str, Any]) -> list[str]:
    """Return the sections about the accuracy."""
    if not (shown := accuracies(test)):
        return []
    views, videos = test["views"], test["metrics"]["num_labelled"]
    rows = [["metric", "percent"], *([name, f"{value:.2f}"] for name, value in shown.items())]
    text = f"{videos} videos of {net.cfg.TEST.DATASET}, {views['temporal']} x {views['spatial']} views."
    parts = [f"## Accuracy\n\n{text}\n\n{markdown(rows)}"]
    scores = Path(net.cfg.OUTPUT_DIR, "test", "scores.npz")
    outcomes = read_outcomes(scores)
    if isinstance(outcomes, MultiLabelOutcomes):
        table = [["class", "videos", "average precision"]]
        for row in sorted(precision_rows(outcomes), key=lambda row: row.name):
            table.append([row.name, str(row.videos), f"{row.precision:.1f}"])
        parts.append(f"### Average precision per class\n\n{markdown(table)}")
    elif outcomes:
        table = [["class", "videos", "top-1", "most often taken for"]]
        for row in sorted(class_rows(outcomes, confusion(outcomes)), key=lambda row: row.name):
            table.append([row.name, str(row.videos), f"{row.top1:.1f}", row.confused])
        parts.append(f"### Accuracy per class\n\n{markdown(table)}")
    return parts
