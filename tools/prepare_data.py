"""Write lists and class names, check videos, and make copies that decode fast.

python tools/prepare_data.py lists my/videos --out data/mine
python tools/prepare_data.py lists /data/k400 --dataset k400 --annotations k400/annotations --out /data/k400
python tools/prepare_data.py classes /data/k400 --dataset k400 --annotations k400/annotations
python tools/prepare_data.py check my/videos --lists data/mine --clean data/mine
python tools/prepare_data.py reencode my/videos --out my/small_videos
"""

from __future__ import annotations

import argparse
import math
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from slowfast.datasets.catalog import DATASETS
from slowfast.prepare.annotations import lists_from_annotations
from slowfast.prepare.check import QUARANTINE, REPORT, Row, check_media
from slowfast.prepare.clean import clean_lists, list_files
from slowfast.prepare.label_order import annotated_classes, order_by_labels
from slowfast.prepare.reencode import PRESETS, WITHOUT_COPY, Settings, access_times, reencode
from slowfast.prepare.scan import describe, find_media
from slowfast.prepare.split import lists_from_folders
from slowfast.prepare.write import Lists, count_rows, write_lists, write_unlabelled
from slowfast.utils.class_names import format_class_names, read_class_names
from slowfast.utils.io import Parser, counted, guarded, write_text
from slowfast.utils.processes import usable_cores

ROOT = Path(__file__).resolve().parents[1]
# --recipe -> the base of an experiment on own videos
RECIPES = {
    "uniformer_s": ROOT / "exp" / "finetune" / "config.yaml",
    "uniformerv2_b16": ROOT / "exp" / "finetune" / "uniformerv2_b16.yaml",
    "frozen": ROOT / "exp" / "finetune" / "frozen.yaml",
}
SHOWN = 10  # bad files


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line; `run` of the result is the function of the sub-command."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], int], about: str) -> Callable[..., Any]:
        one = commands.add_parser(name, help=about)
        one.set_defaults(run=run)
        return one.add_argument

    dataset = {"choices": DATASETS, "default": "own", "metavar": "NAME", "help": f"one of {', '.join(DATASETS)}"}
    workers = {"type": within(int, 1), "default": usable_cores(), "help": "processes (default: one per usable core)"}

    add = command("lists", make_lists, "write train, val and test lists and class names")
    add("videos", help="folder of the videos; without annotations one folder per class")
    add("--out", required=True, help="folder of the lists")
    add("--dataset", **dataset)
    add("--annotations", default="", help="folder (or file) of the data set's own annotations")
    add("--fold", type=int, choices=(1, 2, 3), default=1, help="official split of UCF101 and HMDB51")
    add("--subset", action="store_true", help="accept fewer classes than the data set has")
    add("--class-names", metavar="FILE", help="class names in the order of their labels, or with their numbers")
    add("--val-share", type=float, default=0.15, help="share of own videos to validate on (default: %(default)s)")
    add("--test-share", type=float, default=0.15, help="share of own videos to test on (default: %(default)s)")
    add("--seed", type=int, default=0, help="seed of the split (default: %(default)s)")
    add("--group", default="", metavar="REGEX", help="keep videos with the same match in one list")
    add("--recipe", choices=RECIPES, help="own videos: network of the experiment (default: uniformer_s)")
    add("--unlabelled", action="store_true", help="write test.csv only, for predictions")
    add("--overwrite", action="store_true", help="replace lists that differ")

    add = command("classes", write_class_names, "write the class names of lists that were made elsewhere")
    add("lists", help="folder of the lists")
    add("--dataset", **dataset)
    add("--annotations", default="", help="official annotations, or a file of class names")
    add("--overwrite", action="store_true", help="replace a class_names.txt that differs")

    add = command("check", check, "decode the ends and the middle of every file, or all of it")
    add("videos", help="folder of the videos")
    add("--lists", metavar="DIR", help="check the videos of these lists (default: all videos)")
    add("--dataset", **dataset)
    add("--out", help=f"folder of {REPORT} and {QUARANTINE} (default: check/ in the folder of the lists)")
    add("--clean", metavar="DIR", help="write the lists without the bad files; may be the lists' own folder")
    add(
        "--max-bad-share",
        type=within(float, 0, 1),
        default=0.2,
        help="clean nothing if a larger share is bad (default: %(default)s)",
    )
    add("--recheck", action="store_true", help="check again files that were found bad")
    add("--full", action="store_true", help="decode every frame: finds damage between ends and middle")
    add("--timeout", type=within(float, 0.001), help="seconds for one file (default: 60, with --full 3600)")
    add("--workers", **workers)

    add = command("reencode", make_copies, "make small copies with close key frames")
    add("videos", help="folder of the videos")
    add("--out", required=True, help="folder of the copies, under the same paths")
    add("--short-side", type=within(int, 2), default=320, help="pixels; never enlarges (default: %(default)s)")
    add("--key-frames", type=within(int, 1), default=16, help="distance of key frames (default: %(default)s)")
    add("--crf", type=within(int, 0, 51), default=20, help="quality, 0 (best) to 51 (default: %(default)s)")
    add("--preset", choices=PRESETS, default="fast", help="preset of libx264 (default: %(default)s)")
    add(
        "--measure", type=within(int, 0), default=20, metavar="N", help="files to time, 0 = none (default: %(default)s)"
    )
    add("--timeout", type=within(float, 0.001), default=3600, help="seconds for one file (default: %(default)s)")
    add("--workers", **workers)
    return parser.parse_args(argv)


def within(kind: Callable[[str], float], low: float, high: float = math.inf) -> Callable[[str], float]:
    """Return the type of an option whose value must be in low .. high."""

    def number(text: str) -> float:
        value = kind(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text} is outside {low} .. {high}")
        return value

    return number


def make_lists(args: argparse.Namespace) -> int:
    """Write lists; print the files that were found and left out.

    Raises:
        ValueError: the options do not fit together, or lists cannot be made or written.
    """
    dataset = DATASETS[args.dataset]
    own = dataset.annotations == "folders"
    if args.recipe and (args.unlabelled or not own):
        option = "--unlabelled" if args.unlabelled else f"--dataset {args.dataset}"
        raise ValueError(f"--recipe {args.recipe} makes an experiment on own videos, {option} makes none: remove one")
    if args.unlabelled:
        found = find_media(args.videos)
        target = write_unlabelled(args.out, found.sizes, found.notes, overwrite=args.overwrite)
        show(describe(found.notes))
        print(f"{target}: {counted(len(found.sizes), 'video')}")
        return 0
    recipe = own_recipe(args) if own else None
    lists = find_lists(args)
    written = write_lists(lists, args.out, args.videos, dataset, recipe=recipe, overwrite=args.overwrite)
    show([*describe(lists.notes), *count_rows(lists)])
    changes = "wrote " + ", ".join(path.name for path in written) if written else "unchanged"
    print(f"{args.out}: {len(lists.class_names)} classes; {changes}")
    if own:
        videos, out, config = map(shlex.quote, (args.videos, args.out, str(Path(args.out, "config.yaml"))))
        print(f"next: python tools/prepare_data.py check {videos} --lists {out} --clean {out}")
        print(f"then: python tools/run_net.py --cfg {config}")
    return 0


def own_recipe(args: argparse.Namespace) -> Path:
    """Return the recipe of an experiment on own videos.

    Raises:
        ValueError: there is an experiment with another one, which is never replaced.
    """
    recipe, config = RECIPES[args.recipe or "uniformer_s"], Path(args.out, "config.yaml")
    if args.recipe and config.exists() and f"{recipe.parent.name}/{recipe.name}" not in config.read_text("utf-8"):
        raise ValueError(
            f"{config} is an experiment without --recipe {args.recipe}, and is never replaced: move it away, or name "
            f"{recipe} in its _BASE_"
        )
    return recipe


def find_lists(args: argparse.Namespace) -> Lists:
    """Make the lists from folders or annotations.

    Raises:
        ValueError: --dataset and --annotations do not fit.
    """
    dataset = DATASETS[args.dataset]
    names = read_class_names(args.class_names) if args.class_names else None
    if dataset.annotations == "folders":
        if args.annotations:
            raise ValueError(
                f"--annotations {args.annotations} needs --dataset, the name of a public data set; own videos need a "
                "folder per class, which docs/OWN_VIDEOS.md makes from a table"
            )
        shares = {"val_share": args.val_share, "test_share": args.test_share}
        return lists_from_folders(args.videos, class_names=names, **shares, seed=args.seed, group=args.group)
    if dataset.annotations and not args.annotations:
        raise ValueError(f"--dataset {args.dataset} needs --annotations: name the folder of its official files")
    return lists_from_annotations(
        args.videos, args.annotations, dataset, fold=args.fold, class_names=names, subset=args.subset
    )


def write_class_names(args: argparse.Namespace) -> int:
    """Write class_names.txt in the order of the labels of existing lists."""
    dataset, folder = DATASETS[args.dataset], Path(args.lists)
    names, classes = annotated_classes(args.annotations, dataset)
    lists = [file.read() for file in list_files(folder, dataset)]
    names, shown = order_by_labels(lists, names, classes)
    target, text = folder / "class_names.txt", format_class_names(names)
    if target.exists() and target.read_bytes() != text.encode("utf-8", "surrogateescape") and not args.overwrite:
        raise ValueError(f"{target} contains other names: replace it with --overwrite")
    write_text(target, text)
    order = f"; their order is that of {counted(shown, 'row')} of the lists" if shown else ""
    print(f"{target}: {counted(len(names), 'class')}{order}")
    if not shown:
        print(
            "warning: no row of the lists shows its class, so the names are in the order of the annotation: if the "
            "labels are numbers of another file, name that file with --annotations",
            file=sys.stderr,
        )
    return 0


def check(args: argparse.Namespace) -> int:
    """Check videos, and clean lists; return 1 if some videos are bad."""
    if args.clean and not args.lists:
        raise ValueError(f"--clean {args.clean} needs --lists: name the folder of the lists to clean")
    if not (args.out or args.lists):
        raise ValueError("--out is needed without --lists: name a folder for the report")
    if not Path(args.videos).is_dir():
        raise ValueError(f"no folder {args.videos}: name the one that the paths start from")
    if args.lists:
        lists = list_files(Path(args.lists), DATASETS[args.dataset], args.videos)
        media = {row.path: row.num_frames for file in lists for row in file.read()}
        out = Path(args.out or Path(args.lists, "check"))
    else:
        found = find_media(args.videos)
        media = dict.fromkeys((*found.sizes, *found.unusable))
        lists, out = [], Path(args.out)
    limits = {"workers": args.workers, "timeout": args.timeout or (3600 if args.full else 60)}
    rows = check_media(args.videos, media, out, **limits, recheck=args.recheck, full=args.full)
    bad = show_check(rows, out)
    if args.clean:
        if len(bad) > max(1, args.max_bad_share * len(media)):
            raise ValueError(
                f"{len(bad)} of {len(media)} files below {args.videos} are bad, more than --max-bad-share "
                f"{args.max_bad_share:g}, so no list was cleaned: check that the folder is mounted, and that the paths "
                "start from it, or remove all bad files with --max-bad-share 1"
            )
        print("\n".join(clean_lists(lists, Path(args.clean), bad)))
    return int(bool(bad))


def show_check(rows: Sequence[Row], out: Path) -> set[str]:
    """Print the results of a check; return the paths of bad media."""
    bad = {row.path: row.reason for row in rows if not row.ok}
    show(f"{path}: {bad[path]}" for path in list(bad)[:SHOWN])
    print(f"bad files: {len(bad)} of {len(rows)}; {out / REPORT} has all, {out / QUARANTINE} the bad ones")
    if slow := [row for row in rows if row.ok and row.reason]:
        print(
            f"good files that every read decodes from the beginning to the end: {len(slow)}, such as {slow[0].path} "
            f"({slow[0].reason}); prepare_data.py reencode makes faster copies"
        )
    return set(bad)


def make_copies(args: argparse.Namespace) -> int:
    """Re-encode videos; return 1 if some cannot be decoded."""
    found = find_media(args.videos)
    paths = [path for path, size in found.sizes.items() if size is not None] + found.unusable
    folders = [path for path, size in found.sizes.items() if size is None]
    settings = Settings(args.short_side, args.key_frames, args.crf, args.preset)
    limits = {"workers": args.workers, "timeout": args.timeout}
    broken = reencode(args.videos, paths, args.out, settings, **limits, folders=folders)
    done = [path for path in paths if path not in broken]
    if folders:
        print(f"not encoded: {counted(len(folders), 'folder')} of images")
    show(f"{path}: {reason}" for path, reason in list(broken.items())[:SHOWN])
    rest = f"{len(broken)} broken, see {Path(args.out, WITHOUT_COPY)}" if broken else "none is broken"
    print(f"{args.out}: {len(done)} {'copy' if len(done) == 1 else 'copies'}; {rest}")
    if done:
        before, after = (sum(Path(top, path).stat().st_size for path in done) for top in (args.videos, args.out))
        larger = "; a higher --crf, into another --out, makes smaller copies" if after > before else ""
        print(f"size: {before / 1e6:.1f} MB before, {after / 1e6:.1f} MB after ({after / before:.0%}){larger}")
    timed = done[:: max(1, len(done) // args.measure)][: args.measure] if args.measure else []
    if times := access_times([args.videos, args.out], timed):
        before, after = times
        slower = "; the copies are slower to read: train on the original videos" if after > before else ""
        print(f"16 random frames: {before:.1f} ms before, {after:.1f} ms after ({before / after:.1f} x){slower}")
    return int(bool(broken))


def show(lines: Iterable[str]) -> None:
    """Print indented lines."""
    for line in lines:
        print(f"  {line}")


def main() -> int:
    """Run a sub-command; return its exit code, or one of `guarded`."""
    args = parse_args()
    return guarded(lambda: args.run(args), "interrupted: the same command continues where this one stopped")


if __name__ == "__main__":
    sys.exit(main())
