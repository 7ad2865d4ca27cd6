"""Predict the classes of videos: slowfast-predict VIDEO|FOLDER|PATTERN|LIST|URL ... --weights SOURCE."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from slowfast.datasets.reader import FOLDER_RATE, MediaError
from slowfast.inference.command import (
    add_network,
    check_some,
    find_videos,
    in_processes,
    load_network,
    names_of,
    positive,
    report_bad,
)
from slowfast.inference.network import Network
from slowfast.inference.results import Prediction
from slowfast.inference.windows import Timeline, predict_windows, rate_and_seconds
from slowfast.utils.io import Parser, check_output, csv_text, write_json, write_text

BAR = 24  # characters
SHOWN = 40  # videos and segments that the terminal shows


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser(prog="slowfast-predict", description=__doc__, allow_abbrev=False)
    parser.add_argument("videos", nargs="+", metavar="VIDEO", help="file, folder, pattern, list (.txt, .csv) or URL")
    add_network(parser)
    parser.add_argument("--top", type=positive(int), metavar="N", help="classes per video (default: 5)")
    parser.add_argument("--json", metavar="FILE", help="write the predictions as JSON")
    parser.add_argument("--csv", metavar="FILE", help="write the predictions as a table")
    parser.add_argument("--video", metavar="FILE", help="video to write, with predictions; a folder for several")
    parser.add_argument("--sheet", metavar="FILE", help="picture to write, of the frames seen; a folder for several")
    long = parser.add_argument_group("long videos")
    long.add_argument("--window", type=positive(float), metavar="S", help="predict windows of S seconds")
    long.add_argument(
        "--stride", type=positive(float), metavar="S", help="seconds from window to window (default: window / 4)"
    )
    long.add_argument("--segments", metavar="FILE", help="JSON to write, with a PNG beside it (default: segments.json)")
    long.add_argument("--batch", type=positive(int), metavar="N", help="windows per pass (default: 8)")
    args = parser.parse_args(argv)
    of_windows, of_videos = ("stride", "segments", "batch"), ("gpus", "processes", "sheet", "json", "csv", "top")
    without = next((name for name in (of_videos if args.window else of_windows) if getattr(args, name)), "")
    if without and args.window:
        parser.error(f"--window runs in one process and writes --segments and --video: leave --{without} out")
    if without:
        parser.error(f"--{without} needs --window")
    args.segments, args.batch, args.top = args.segments or "segments.json", args.batch or 8, args.top or 5
    return args


def execute(args: argparse.Namespace) -> int:
    """Predict what a command line says; return the exit code."""
    paths = find_videos(args.videos)
    for option in ("json", "csv"):
        if path := getattr(args, option):
            check_output(path, f"--{option}")
    targets = {option: _targets(getattr(args, option), paths, option) for option in ("video", "sheet")}
    if args.window:
        check_output(args.segments, "--segments")
        return _predict_long(args, paths, targets["video"])
    net = _named_network(args)
    if net.is_image and any(targets.values()):
        raise ValueError("this network takes images: leave out --video and --sheet")
    paths = find_videos(args.videos, images=True) if net.is_image else paths
    parts = in_processes(predict_part, args, paths, net)
    found = [parts[row % len(parts)][row // len(parts)] for row in range(len(paths))]
    good = [prediction for prediction in found if not prediction.error]
    bad = [(prediction.path, prediction.error) for prediction in found if prediction.error]
    check_some(good, bad)
    _write(args, found)
    for prediction in tqdm(good, desc="draw", disable=None if any(targets.values()) else True):
        _draw(net, prediction, targets)
    _print_table(good)
    return report_bad(bad)


def _targets(place: str | None, paths: Sequence[str], option: str) -> dict[str, str]:
    """Return path of a video -> file to write; for several videos, `place` is a folder."""
    if not place:
        return {}
    endings = {"video": (".mp4", ".mkv", ".mov"), "sheet": (".png",)}[option]
    if len(paths) == 1 and not os.path.isdir(place):
        files = {paths[0]: place}
    elif place.lower().endswith(endings) and not os.path.isdir(place):
        raise ValueError(f"--{option} {place} names a file, but there are {len(paths)} videos: name a folder")
    else:
        files = {path: os.path.join(place, name + endings[0]) for name, path in names_of(paths).items()}
    for path, file in files.items():
        check_output(file, f"--{option}")
        if not file.lower().endswith(endings):
            raise ValueError(f"--{option} {file} must end in {' or '.join(endings)}")
        if os.path.realpath(path) == os.path.realpath(file):
            raise ValueError(f"--{option} would replace {path}: choose another place")
    return files


def _named_network(args: argparse.Namespace, overrides: Sequence[str] = ()) -> Network:
    net = load_network(args, overrides)
    if net.class_names is None:
        raise ValueError(
            f"{args.weights} does not name its classes: give --class-names FILE, one name per line in the order of "
            "the rows of the classifier"
        )
    return net


def predict_part(
    args: argparse.Namespace, paths: Sequence[str], part: int, parts: int, net: Network | None = None
) -> list[Prediction]:
    """Predict every `parts`-th video."""
    mine = paths[part::parts]
    return (net or load_network(args)).predict(mine, args.top) if mine else []


def _write(args: argparse.Namespace, found: Sequence[Prediction]) -> None:
    if args.json:
        write_json(args.json, [prediction.as_dict() for prediction in found])
    if args.csv:
        top = max(len(prediction.top) for prediction in found)
        ranks = range(1, top + 1)
        rows: list[list[Any]] = [["path", *(f"top{k}" for k in ranks), *(f"probability{k}" for k in ranks), "error"]]
        for prediction in found:
            names = [one.name for one in prediction.top] or [""] * top
            values = [f"{one.probability:.6g}" for one in prediction.top] or [""] * top
            rows.append([prediction.path, *names, *values, prediction.error])
        write_text(args.csv, csv_text(rows))


def _draw(net: Network, prediction: Prediction, targets: dict[str, dict[str, str]]) -> None:
    from slowfast.inference.draw import pictures, write_sheet, write_video

    if file := targets["sheet"].get(prediction.path):
        clips, crops = pictures(net.cfg, net.clips(prediction.path)), net.cfg.TEST.NUM_SPATIAL_CROPS
        names = [f"view {clip // crops + 1}{f', crop {clip % crops + 1}' * (crops > 1)}" for clip in range(len(clips))]
        labels = [(name, () if clip else prediction.top[:3]) for clip, name in enumerate(names)]
        write_sheet(clips, labels, os.path.basename(prediction.path.rstrip("/")), file)
    if file := targets["video"].get(prediction.path):
        timeline = Timeline(prediction.path, [0.0], [prediction.top], rate_and_seconds(prediction.path)[1])
        if silent := write_video(timeline, file):
            print(f"{prediction.path}: {silent}", file=sys.stderr)


def _predict_long(args: argparse.Namespace, paths: Sequence[str], videos: dict[str, str]) -> int:
    """Predict the windows of videos, and write their segments."""
    from slowfast.inference.draw import write_timeline, write_video

    net = _named_network(args, ["TEST.NUM_SPATIAL_CROPS", "1"])
    good, bad = list[Timeline](), list[tuple[str, str]]()
    for path in paths:
        try:
            good.append(_timeline(args, net, path))
        except MediaError as error:
            bad.append((error.path, error.reason))
    check_some(good, bad)
    report = [
        {"path": one.path, "seconds": round(one.seconds, 3), "segments": [part.as_dict() for part in one.segments()]}
        for one in good
    ]
    rule = {"window": args.window, "stride": args.stride or args.window / 4}
    write_json(args.segments, {**rule, "videos": report, "unreadable": bad})
    base = os.path.splitext(args.segments)[0]
    for number, timeline in enumerate(good):
        stem = os.path.splitext(os.path.basename(timeline.path))[0]
        write_timeline(timeline, f"{base}.png" if len(good) == 1 else f"{base}_{number}_{stem}.png")
        _print_segments(timeline)
        if timeline.path in videos and (silent := write_video(timeline, videos[timeline.path])):
            print(f"{timeline.path}: {silent}", file=sys.stderr)
    return report_bad(bad)


def _timeline(args: argparse.Namespace, net: Network, path: str) -> Timeline:
    rate, seconds = (FOLDER_RATE, 0.0) if os.path.isdir(path) else rate_and_seconds(path)
    window = max(1, round(args.window * rate))
    stride = max(1, round((args.stride or args.window / 4) * rate))
    bar = tqdm(total=round(seconds, 1), desc=os.path.basename(path), unit="s", disable=None, leave=False)
    with bar:
        return predict_windows(net, path, window, stride, args.batch, lambda time: bar.update(time - bar.n))


def _print_table(found: Sequence[Prediction]) -> None:
    width = max(len(one.name) for prediction in found for one in prediction.top)
    for prediction in found[:SHOWN]:
        print(prediction.path)
        for one in prediction.top:
            bar = "█" * round(one.probability * BAR)
            print(f"  {one.name:<{width}}  {bar:<{BAR}} {100 * one.probability:5.1f} %")
    if len(found) > SHOWN:
        print(f"... and {len(found) - SHOWN} more videos, which --json and --csv also write")


def _print_segments(timeline: Timeline) -> None:
    print(timeline.path)
    segments = timeline.segments()
    width = max(len(one.found.name) for one in segments)
    for one in segments[:SHOWN]:
        begin, end = (f"{int(time // 60)}:{time % 60:04.1f}" for time in (one.begin, one.end))
        print(f"  {begin:>9} - {end:>9}  {one.found.name:<{width}}  {100 * one.found.probability:5.1f} %")
    if len(segments) > SHOWN:
        print(f"  ... and {len(segments) - SHOWN} more segments")
