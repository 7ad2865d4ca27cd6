"""Write lists and class names, check videos, make copies that decode fast; docs writes the tables of DATASET.md.

python tools/prepare_data.py lists my/videos --out data/mine
python tools/prepare_data.py lists /data/k400 --dataset k400 --annotations k400/annotations --out /data/k400
python tools/prepare_data.py classes /data/k400 --dataset k400 --annotations k400/annotations
python tools/prepare_data.py check my/videos --lists data/mine --clean data/mine
python tools/prepare_data.py reencode my/videos --out my/small_videos
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from html import escape
from pathlib import Path

import yaml

from slowfast.datasets.catalog import CATALOG, DATASETS, Dataset
from slowfast.prepare.annotations import lists_from_annotations
from slowfast.prepare.check import QUARANTINE, REPORT, Media, check_media
from slowfast.prepare.clean import filter_list, original_of, read_any_list, taken_out
from slowfast.prepare.label_order import annotated_classes, order_by_labels
from slowfast.prepare.reencode import WITHOUT_COPY, Settings, access_times, reencode
from slowfast.prepare.write import (
    count_rows,
    describe,
    find_media,
    lists_from_folders,
    write_lists,
    write_unlabelled,
)
from slowfast.utils.class_names import format_class_names, read_class_names
from slowfast.utils.io import atomic_write, write_text

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "exp" / "finetune" / "config.yaml"
MARK = "<!-- Written by tools/prepare_data.py docs, up to the next mark. -->"
END = "<!-- End of what tools/prepare_data.py wrote. -->"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line; `run` of the result is the function of the sub-command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    one = commands.add_parser("lists", help="write train, val and test lists and class names")
    one.set_defaults(run=make_lists)
    one.add_argument("videos", help="folder of the videos; without annotations one folder a class")
    one.add_argument("--out", required=True, help="folder of the lists")
    one.add_argument("--dataset", choices=DATASETS, default="own", metavar="NAME", help=f"{', '.join(DATASETS)}")
    one.add_argument("--annotations", help="folder (or file) of the data set's own annotations")
    one.add_argument("--fold", type=int, choices=(1, 2, 3), default=1, help="official split of UCF101 and HMDB51")
    one.add_argument("--subset", action="store_true", help="accept fewer classes than the data set has")
    one.add_argument(
        "--class-names", metavar="FILE", help="class names in the order of their labels, or with their numbers"
    )
    one.add_argument("--val-share", type=float, default=0.15, help="own videos to validate on (default: %(default)s)")
    one.add_argument("--test-share", type=float, default=0.15, help="own videos to test on (default: %(default)s)")
    one.add_argument("--seed", type=int, default=0, help="seed of the split (default: %(default)s)")
    one.add_argument("--group", default="", metavar="REGEX", help="keep videos with the same match together")
    one.add_argument("--unlabelled", action="store_true", help="write test.csv only, for predictions")
    one.add_argument("--overwrite", action="store_true", help="replace lists that differ")

    one = commands.add_parser("classes", help="write the class names of lists that were made elsewhere")
    one.set_defaults(run=write_class_names)
    one.add_argument("lists", help="folder of the lists")
    one.add_argument("--dataset", choices=DATASETS, default="own", metavar="NAME", help="data set of the lists")
    one.add_argument("--annotations", default="", help="official annotations, or a file of class names")
    one.add_argument("--overwrite", action="store_true", help="replace a class_names.txt that differs")

    one = commands.add_parser("check", help="decode the ends and the middle of every file, or all of it")
    one.set_defaults(run=check)
    one.add_argument("videos", help="folder of the videos")
    one.add_argument("--lists", metavar="DIR", help="check the videos of these lists (default: all videos)")
    one.add_argument("--dataset", choices=DATASETS, default="own", metavar="NAME", help="data set of the lists")
    one.add_argument("--out", help=f"folder of {REPORT} and {QUARANTINE} (default: check/ in the folder of the lists)")
    one.add_argument(
        "--clean", metavar="DIR", help="write the lists without the bad files; may be the lists' own folder"
    )
    one.add_argument(
        "--max-bad-share",
        type=float,
        default=0.2,
        metavar="X",
        help="clean nothing if more are bad (default: %(default)s)",
    )
    one.add_argument("--recheck", action="store_true", help="check again files that were found bad")
    one.add_argument("--full", action="store_true", help="decode every frame: finds damage between ends and middle")
    one.add_argument("--timeout", type=float, help="seconds for one file (default: 60, with --full 3600)")
    one.add_argument("--workers", type=int, default=os.cpu_count(), help="processes (default: one per core)")

    one = commands.add_parser("reencode", help="make small copies with close key frames")
    one.set_defaults(run=make_copies)
    one.add_argument("videos", help="folder of the videos")
    one.add_argument("--out", required=True, help="folder of the copies, under the same paths")
    one.add_argument("--short-side", type=int, default=320, help="pixels; never enlarges (default: %(default)s)")
    one.add_argument("--key-frames", type=int, default=16, help="distance of key frames (default: %(default)s)")
    one.add_argument("--crf", type=int, default=20, help="quality, 0 (best) to 51 (default: %(default)s)")
    one.add_argument("--preset", default="fast", help="preset of libx264 (default: %(default)s)")
    one.add_argument(
        "--measure", type=int, default=20, metavar="N", help="files to time, 0 = none (default: %(default)s)"
    )
    one.add_argument("--timeout", type=float, default=3600, help="seconds for one file (default: %(default)s)")
    one.add_argument("--workers", type=int, default=os.cpu_count(), help="processes (default: one per core)")

    one = commands.add_parser("docs", help="write the tables of DATASET.md")
    one.set_defaults(run=write_docs)
    one.add_argument("--check", action="store_true", help="write nothing; exit with 1 if DATASET.md would change")
    args = parser.parse_args(argv)
    if "max_bad_share" in args and not 0 <= args.max_bad_share <= 1:
        parser.error(f"--max-bad-share {args.max_bad_share:g} must be in 0 .. 1")
    if "full" in args and args.timeout is None:
        args.timeout = 3600 if args.full else 60
    if "workers" in args and (args.workers < 1 or args.timeout <= 0):
        parser.error(f"--workers {args.workers} must be at least 1, --timeout {args.timeout:g} above 0")
    return args


def make_lists(args: argparse.Namespace) -> int:
    """Write lists; print the files that were found and left out."""
    dataset, names = DATASETS[args.dataset], None
    if args.unlabelled:
        found = find_media(args.videos)
        tell(describe(found.notes))
        target = write_unlabelled(args.out, found.sizes, overwrite=args.overwrite)
        cleaned = ", but for bad ones taken out of it (--overwrite writes all)" if original_of(target).exists() else ""
        print(f"{target}: {len(found.sizes)} videos{cleaned}")
        return 0
    if args.class_names:
        names = read_class_names(args.class_names)
    if dataset.annotations == "folders":
        if args.annotations:
            raise ValueError(f"--annotations {args.annotations} needs --dataset: folders are their own annotations")
        lists = lists_from_folders(
            args.videos,
            class_names=names,
            val_share=args.val_share,
            test_share=args.test_share,
            seed=args.seed,
            group=args.group,
        )
    elif args.annotations or dataset.annotations is None:
        lists = lists_from_annotations(
            args.videos, args.annotations or "", dataset, fold=args.fold, class_names=names, subset=args.subset
        )
    else:
        raise ValueError(f"--dataset {args.dataset} needs --annotations: the folder of its official files")
    written = write_lists(
        lists,
        args.out,
        args.videos,
        dataset,
        recipe=RECIPE if dataset.annotations == "folders" else None,
        overwrite=args.overwrite,
    )
    tell(describe(lists.notes))
    tell(count_rows(lists))
    print(
        f"{args.out}: {len(lists.class_names)} classes; " + (f"wrote {names_of(written)}" if written else "unchanged")
    )
    if dataset.annotations == "folders":
        videos, out, config = map(shlex.quote, (args.videos, args.out, str(Path(args.out, "config.yaml"))))
        print(f"next: python tools/prepare_data.py check {videos} --lists {out} --clean {out}")
        print(f"then: python tools/run_net.py --cfg {config}")
    return 0


def write_class_names(args: argparse.Namespace) -> int:
    """Write class_names.txt in the order of the labels of existing lists."""
    dataset, folder = DATASETS[args.dataset], Path(args.lists)
    names, classes = annotated_classes(args.annotations, dataset)
    files = list_files(folder, dataset).items()
    lists = [read_any_list(path, columns, dataset.separator, folder) for path, columns in files]
    names, shown = order_by_labels(lists, names, classes)
    target, text = folder / "class_names.txt", format_class_names(names)
    if target.exists() and target.read_bytes() != text.encode("utf-8", "surrogateescape") and not args.overwrite:
        raise ValueError(f"{target} contains other names: replace it with --overwrite")
    write_text(target, text)
    print(f"{target}: {len(names)} classes" + (f"; their order is that of {shown} rows of the lists" if shown else ""))
    if not shown:
        print(
            "warning: no row of the lists shows its class, so the names are in the order of the annotation. If the "
            "labels are the numbers of another file, such as the authors' label file, give that file as --annotations",
            file=sys.stderr,
        )
    return 0


def check(args: argparse.Namespace) -> int:
    """Check videos; 1 if some are bad."""
    dataset = DATASETS[args.dataset]
    lists = list_files(Path(args.lists), dataset) if args.lists else {}
    if args.clean and not lists:
        raise ValueError(f"--clean {args.clean} needs --lists: the lists to clean")
    if not (args.out or args.lists):
        raise ValueError("--out is needed where there are no --lists: the folder of the report")
    if lists:
        media, earlier = media_of(lists, dataset, args.videos)
    else:
        found = find_media(args.videos)
        media, earlier = {path: Media(path) for path in (*found.sizes, *found.unusable)}, {}
    if not Path(args.videos).is_dir():
        raise ValueError(f"no folder {args.videos}: name the one that the paths start from")
    out = Path(args.out or Path(args.lists) / "check")
    rows = check_media(
        args.videos,
        [*media.values(), *earlier.values()],
        out,
        workers=args.workers,
        timeout=args.timeout,
        recheck=args.recheck,
        template=own_template(Path(args.lists)) if args.lists else "",
        full=args.full,
    )
    reasons = {row.path: row.reason for row in rows if not row.ok}
    bad = [path for path in reasons if path in media]
    tell(f"{path}: {reasons[path]}" for path in bad[:10])
    more = f", and {len(reasons) - len(bad)} that the lists had before" if len(reasons) > len(bad) else ""
    print(f"{len(bad)} of {len(media)} files are bad{more}; {out / REPORT} has all, {out / QUARANTINE} the bad ones")
    if slow := {row.path: row.reason for row in rows if row.ok and row.reason and row.path in media}:
        path, reason = next(iter(slow.items()))
        print(
            f"{len(slow)} good files are decoded from the beginning to the end for every read, such as {path} "
            f"({reason}): prepare_data.py reencode makes faster copies"
        )
    if args.clean:
        if len(bad) > max(1, args.max_bad_share * len(media)):
            raise ValueError(
                f"{len(bad)} of {len(media)} files below {args.videos} are bad, more than --max-bad-share "
                f"{args.max_bad_share:g}, so no list was cleaned: is that folder mounted, and the one that the paths "
                "start from? --max-bad-share 1 takes them all out"
            )
        clean_lists(lists, Path(args.clean), set(bad), dataset, args.videos)
        names = Path(args.lists) / "class_names.txt"
        if names.exists() and Path(args.clean).resolve() != Path(args.lists).resolve():
            write_text(Path(args.clean) / names.name, names.read_text(encoding="utf-8", errors="surrogateescape"))
    if back := [path for path in earlier if path not in reasons]:
        print(
            f"  {len(back)} files that can be read are in no list but in the .orig beside one, such as {back[0]}: to "
            "have them back, rename it to the list and clean again"
        )
    return int(bool(bad))


def media_of(
    lists: dict[Path, tuple[str, ...]], dataset: Dataset, videos: str
) -> tuple[dict[str, Media], dict[str, Media]]:
    """What the lists name, by path, and what else they named before they were cleaned in their place."""
    now = {
        sample.path: Media(sample.path, sample.num_frames)
        for path, columns in lists.items()
        for sample in read_any_list(path, columns, dataset.separator, videos)
    }
    before = {
        sample.path: Media(sample.path, sample.num_frames)
        for path, columns in lists.items()
        for sample in taken_out(path, columns, dataset.separator, videos) or ()
    }
    return now, {path: media for path, media in before.items() if path not in now}


def clean_lists(lists: dict[Path, tuple[str, ...]], folder: Path, bad: set[str], dataset: Dataset, videos: str) -> None:
    """Write lists without the rows of bad files; one that is cleaned in its place is kept as .orig, as it was at first.

    Raises:
        ValueError: a list would be empty, or there is a .orig that has not all rows of its list; none has been written.
    """
    cleaned = {path: filter_list(path, bad, columns, dataset.separator, videos) for path, columns in lists.items()}
    in_place = {path for path in lists if (folder / path.name).resolve() == path.resolve()}
    for path in in_place:
        if cleaned[path][1] and original_of(path).exists() and taken_out(path, lists[path], dataset.separator) is None:
            raise ValueError(
                f"{original_of(path)} is not {path} as it was before it was cleaned, which belongs there: move it away"
            )
    for path, (text, dropped, lost) in cleaned.items():
        target, kept = folder / path.name, ""
        if path not in in_place:
            write_text(target, text)
        elif dropped:
            original = original_of(path)
            if not original.exists():
                with atomic_write(original) as file:
                    file.write(path.read_bytes())
            write_text(target, text)
            kept = f"; {original.name} is the list as it was"
        note = f"; no video is left of {len(lost)} classes, with labels {lost[:3]}" if lost else ""
        print(f"{target}: {dropped} rows left out{kept}{note}")


def own_template(folder: Path) -> str:
    """DATA.IMAGE_TEMPLATE of the lists in a folder, where data.yaml tells it; otherwise ""."""
    path = folder / "data.yaml"
    content = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None
    return ((content or {}).get("DATA") or {}).get("IMAGE_TEMPLATE", "")


def make_copies(args: argparse.Namespace) -> int:
    """Encode videos anew; 1 if some cannot be decoded."""
    if args.short_side < 2 or args.key_frames < 1 or not 0 <= args.crf <= 51:
        raise ValueError(
            f"--short-side {args.short_side}, --key-frames {args.key_frames} or --crf {args.crf} is out of range: at "
            "least 2 and 1, and 0 to 51"
        )
    found = find_media(args.videos)
    paths = [path for path, size in found.sizes.items() if size is not None] + found.unusable
    if folders := [path for path, size in found.sizes.items() if size is None]:
        print(f"{len(folders)} folders of images are not encoded")
    settings = Settings(args.short_side, args.key_frames, args.crf, args.preset)
    outcome = reencode(
        args.videos, paths, args.out, settings, workers=args.workers, timeout=args.timeout, folders=folders
    )
    tell(f"{path}: {reason}" for path, reason in list(outcome.broken.items())[:10])
    broken = f"{len(outcome.broken)} broken, see {Path(args.out, WITHOUT_COPY)}" if outcome.broken else "none is broken"
    print(f"{len(outcome.done)} copies in {args.out}; {broken}")
    if outcome.done:
        before, after = outcome.bytes_before, outcome.bytes_after
        print(f"size: {before / 1e6:.1f} MB before, {after / 1e6:.1f} MB after ({after / before:.0%})")
        if after > before:
            print("  the copies are larger: a higher --crf, into another --out, makes smaller ones")
    if args.measure and outcome.done:
        step = max(1, len(outcome.done) // args.measure)
        times = access_times([args.videos, args.out], outcome.done[::step][: args.measure])
        if times:
            print(f"16 random frames: {times[0]:.1f} ms before, {times[1]:.1f} ms after ({times[0] / times[1]:.1f} x)")
            if times[1] > times[0]:
                print("  the copies are slower to read: train on the original videos")
    return int(bool(outcome.broken))


def write_docs(args: argparse.Namespace) -> int:
    """Write the tables of DATASET.md, or compare them."""
    path = ROOT / "DATASET.md"
    old = path.read_text(encoding="utf-8")
    head, mark, rest = old.partition(MARK)
    _, end, tail = rest.partition(END)
    if not mark or not end:
        raise ValueError(f"{path} lacks the line {MARK if not mark else END}")
    new = f"{head}{MARK}\n\n{tables()}\n{END}{tail}"
    if args.check:
        if new != old:
            print("DATASET.md is not up to date; run python tools/prepare_data.py docs", file=sys.stderr)
        return int(new != old)
    write_text(path, new)
    return 0


def tables() -> str:
    """Return the tables of list formats and of data sets."""
    lines = [
        "| `TRAIN.DATASET`, `TEST.DATASET` | for | a row of the list | frames of a clip |",
        "|---|---|---|---|",
    ]
    for kind, spec in CATALOG.items():
        row = "no list: images in `train/<class>/`, `val/<class>/`" if spec.images else f"`{' '.join(spec.columns)}`"
        frames = {"dense": "a window: `NUM_FRAMES` x `SAMPLING_RATE`", "sparse": "one of each of `NUM_FRAMES` segments"}
        lines.append(
            f"| `{kind}` | {escape(spec.about)} | {row} | {'one image' if spec.images else frames[spec.sampling]} |"
        )
    lines += [
        "",
        "| data set | classes | read as | between columns | flip | class names from | below `$DATA_ROOT` | licence |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for key, dataset in DATASETS.items():
        cells = (
            f"[{dataset.name}]({dataset.page})" if dataset.page else dataset.name,
            str(dataset.num_classes or "any"),
            ", ".join(f"`{kind}`" for kind in dataset.kinds),
            "-" if CATALOG[dataset.kinds[0]].images else {",": "comma", " ": "blank"}[dataset.separator],
            "yes" if dataset.flip else "**no**",
            dataset.class_names,
            "anywhere"
            if key == "own"
            else f"`{key}`" + (f", lists in `{key}/{dataset.lists_in}`" if dataset.lists_in else ""),
            dataset.licence,
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def list_files(folder: Path, dataset: Dataset) -> dict[Path, tuple[str, ...]]:
    """The lists in a folder, with their columns.

    Raises:
        ValueError: there are none.
    """
    found: dict[Path, tuple[str, ...]] = {}
    kind = CATALOG[dataset.kinds[0]]
    templates = {
        dataset.frame_list_file: kind.columns,
        "{}.csv": ("path", "label") if dataset.frame_list_file else kind.columns,
    }
    for template, columns in templates.items():
        for split in ("train", "val", "validation", "test", "official_test"):
            path = folder / template.format(split) if template else None
            if path and path.is_file():
                found[path] = columns
    if not found:
        raise ValueError(f"no lists in {folder}: make them with tools/prepare_data.py lists")
    return found


def names_of(paths: list[Path]) -> str:
    return ", ".join(path.name for path in paths)


def tell(lines) -> None:
    for line in lines:
        print(f"  {line.encode('utf-8', 'replace').decode()}")


def main() -> int:
    """Run a sub-command; a fault of the user's ends in one line and exit code 2."""
    args = parse_args()
    try:
        return args.run(args)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from there", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
