"""Write the tables of MODEL_ZOO.md from the experiment folders: python tools/make_model_zoo.py [--check].

The tables list the folders of exp/ whose config.yaml names released weights in its first lines. Parameters and FLOPs
are computed; accuracies are those that the authors report.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from fvcore.common.config import CfgNode

from slowfast.config import load_config
from slowfast.models import build_model
from slowfast.models.build import input_shape
from slowfast.utils.profiling import count_flops, count_parameters
from slowfast.weights.fetch import released_weights

ROOT = Path(__file__).parents[1]
MARK = "<!-- Everything below is written by tools/make_model_zoo.py. -->"

# The tables, in their order: folder of the data set -> its name.
DATASETS = {
    "k400": "Kinetics-400",
    "k600": "Kinetics-600",
    "k700": "Kinetics-700",
    "k710": "Kinetics-710",
    "mit": "Moments in Time V1",
    "sthv1": "Something-Something V1",
    "sthv2": "Something-Something V2",
    "anet": "ActivityNet",
    "hacs": "HACS",
    "ucf101": "UCF101",
    "hmdb51": "HMDB51",
    "imagenet": "ImageNet-1K",
}

# The first lines of a config.yaml; the weights are a name in slowfast/weights/released.json.
HEADER = re.compile(
    r"# Command:  (?P<command>\S.*)\n"
    r"# Hardware: (?P<gpus>\d+) GPUs(?: \((?P<nodes>\d+) nodes of \d+\))?\n"
    r"# Accuracy: (?:not reported|"
    r"(?P<top1>\d+\.\d\*?) % top-1 reported, (?:(?P<clips>\d+) clips? x )?(?P<crops>\d+) crops?)\n"
    r"# Weights:  (?P<weights>\S+)\n"
)

INTRODUCTION = """\
Accuracy is **as the authors report it**, with the given number of views (clips x crops) per video; `test.sh` in the
folder of an experiment uses the same views. An asterisk is copied from the authors' tables. Parameters and FLOPs are
computed here, for one view; a multiply-add is one FLOP. Those of UniFormerV2 are 2 to 8 % less than in its paper,
because its global blocks compute no keys and values. Names of weights are those of `slowfast/weights/released.json`,
and are accepted in place of a weights file, for example in `TEST.CHECKPOINT_FILE_PATH`."""

TITLE = """\
| experiment | starts from | frames x size | parameters (M) | GFLOPs | views | top-1 reported (%) | weights |
|---|---|---|---|---|---|---|---|"""


@dataclass(frozen=True)
class Experiment:
    """A folder of exp/: its configuration and the fields of its header.

    Attributes:
        top1: reported accuracy in percent, as printed, or None.
        views: clips and crops of the reported accuracy, or None.
        weights: name of the released weights.
    """

    name: str
    cfg: CfgNode
    command: str
    gpus: int
    nodes: int
    top1: str | None
    views: tuple[int, int] | None
    weights: str


def read_experiment(folder: Path) -> Experiment | None:
    """Return the experiment of a folder of exp/, or None if its header names no weights.

    Raises:
        ValueError: the header has another form, or the configuration is faulty.
    """
    path = folder / "config.yaml"
    text = path.read_text(encoding="utf-8")
    if "\n# Weights:" not in text:
        return None
    match = HEADER.match(text)
    if not match:
        raise ValueError(
            f"{path}: the first lines are not Command, Hardware, Accuracy and Weights: write them in the form of "
            "exp/uniformer_s16x4_k400/config.yaml"
        )
    return Experiment(
        name=folder.name,
        cfg=load_config(path),
        command=match["command"],
        gpus=int(match["gpus"]),
        nodes=int(match["nodes"] or 1),
        top1=match["top1"],
        views=(int(match["clips"] or 1), int(match["crops"])) if match["top1"] else None,
        weights=match["weights"],
    )


def read_experiments(root: Path = ROOT) -> list[Experiment]:
    """Return all experiments with released weights, sorted by name."""
    folders = sorted(path.parent for path in (root / "exp").glob("*/config.yaml"))
    return [experiment for folder in folders if (experiment := read_experiment(folder))]


def costs(experiments: Iterable[Experiment]) -> Iterator[tuple[int, int]]:
    """Yield parameters, and multiply-adds of one view of the test, of each experiment.

    Networks that differ only in their classes, which cost less than 0.001 GFLOPs, are run once.
    """
    flops: dict[tuple, int] = {}
    for experiment in experiments:
        cfg = experiment.cfg
        with torch.device("meta"):
            model = build_model(cfg)
        parameters = count_parameters(model)
        model.reset_classifier(0)  # pyright: ignore[reportCallIssue]
        shape = (1, *input_shape(cfg))
        network = (type(model), count_parameters(model), shape)
        if network not in flops:
            with torch.device("meta"):
                flops[network] = count_flops(build_model(cfg), *shape)
        yield parameters, flops[network]


def row(experiment: Experiment, parameters: int, flops: int) -> str:
    """Return one line of a table.

    Raises:
        ValueError: slowfast/weights/released.json does not contain the weights.
    """
    cfg, gflops = experiment.cfg, flops / 1e9
    start = cfg.UNIFORMERV2.PRETRAIN or "CLIP" if cfg.MODEL.ARCH == "uniformerv2" else cfg.UNIFORMER.PRETRAIN_NAME
    released = released_weights().get(experiment.weights)
    if released is None:
        raise ValueError(
            f"exp/{experiment.name}/config.yaml: no weights {experiment.weights} in slowfast/weights/released.json"
        )
    address = released.get("url") or f"https://drive.google.com/file/d/{released['google_drive']}/view"
    cells = (
        f"[{experiment.name}](exp/{experiment.name}/config.yaml)",
        start or "scratch",
        " x ".join(map(str, input_shape(cfg)[1:-1])),  # frames, if there are any, and size
        f"{parameters / 1e6:.1f}",
        f"{gflops:.2f}" if gflops < 10 else f"{gflops:.1f}",
        "{} x {}".format(*experiment.views) if experiment.views else "-",
        experiment.top1.replace("*", r"\*") if experiment.top1 else "-",
        f"[{experiment.weights}]({address})",
    )
    return f"| {' | '.join(cells)} |"


def tables(experiments: Sequence[Experiment]) -> str:
    """Return the introduction and one table per data set, UniFormer before UniFormerV2, sorted by FLOPs."""
    rows: dict[str, list[tuple[tuple, str]]] = {name: [] for name in DATASETS}
    for experiment, (parameters, flops) in zip(experiments, costs(experiments), strict=True):
        prefix = experiment.cfg.DATA.PATH_PREFIX or experiment.cfg.DATA.PATH_TO_DATA_DIR
        dataset = Path(prefix).name
        order = (experiment.cfg.MODEL.ARCH, flops, experiment.name)
        rows[dataset].append((order, row(experiment, parameters, flops)))
    parts = [INTRODUCTION]
    for dataset, lines in rows.items():
        if lines:
            parts.append("\n".join([f"## {DATASETS[dataset]}", "", TITLE, *(line for _, line in sorted(lines))]))
    return "\n\n".join(parts) + "\n"


def main() -> int:
    """Write or compare MODEL_ZOO.md; return 0, 1 if it is not up to date, or 2 if an experiment is faulty."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if MODEL_ZOO.md would change")
    args = parser.parse_args()
    path = ROOT / "MODEL_ZOO.md"
    old = path.read_text(encoding="utf-8")
    try:
        new = f"{old.partition(MARK)[0].rstrip()}\n\n{MARK}\n\n{tables(read_experiments())}"
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if args.check:
        if new != old:
            print("MODEL_ZOO.md is not up to date; run python tools/make_model_zoo.py", file=sys.stderr)
        return int(new != old)
    path.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
