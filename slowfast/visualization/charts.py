"""Draw charts as SVG whose colours are variables of the page, with the values that the pointer shows."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from slowfast.utils.io import drawable
from slowfast.visualization.outcomes import Calibration

# Colours that stand for variables of the page; matplotlib needs numbers.
TEXT, GRID, INK = "#fe0001", "#fe0002", "#fe0003"
VARIABLES = {TEXT: "var(--muted)", GRID: "var(--grid)", INK: "var(--text)"}
NUM_COLORS = 8
STYLE = {
    "svg.fonttype": "none", "svg.hashsalt": "slowfast", "font.family": "sans-serif", "font.size": 8.5,
    "text.color": TEXT, "axes.labelcolor": TEXT, "axes.edgecolor": GRID, "xtick.color": TEXT, "ytick.color": TEXT,
    "xtick.major.size": 0, "ytick.major.size": 0, "axes.grid": True, "grid.color": GRID, "axes.axisbelow": True,
    "axes.spines.top": False, "axes.spines.right": False, "axes.spines.left": False, "axes.formatter.limits": (-3, 5),
    "text.parse_math": False,  # names may contain $
}  # fmt: skip
POINTS = 400  # of a curve; a longer one is drawn as the means of equal parts
NAMED = 40  # classes that a matrix names beside its rows and columns
COUNTED = 16  # classes up to which a matrix shows the counts
CELLS = 30_000  # cells of a matrix that the pointer shows, the largest first
FAINTEST = 0.2  # opacity of a cell with a video; rare mistakes must be visible
# Room for all texts, as shares of the figure: measuring them takes twice as long as drawing the chart.
CURVE_MARGINS = {"left": 0.115, "right": 0.985, "bottom": 0.18, "top": 0.925}
CALIBRATION_MARGINS = {"left": 0.13, "right": 0.98, "bottom": 0.12, "top": 0.98, "hspace": 0.08}
RIGHT, WRONG = (47, 158, 104), (224, 102, 40)  # colours of the cells, on light and dark pages


def color(number: int) -> str:
    """Return the placeholder of the colour of series `number`."""
    return f"#fd{number % NUM_COLORS:02x}01"


@dataclass(frozen=True)
class Series:
    """One curve, dashed from color `NUM_COLORS` on; `marks` draws its points, `level` is a line at its one value."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    color: int = 0
    marks: bool = False
    level: bool = False


@dataclass(frozen=True)
class Chart:
    """A picture for the page: title, SVG, legend as (name, colour, dashed), and data for the pointer."""

    title: str
    svg: str
    legend: list[tuple[str, int, bool]]
    hover: dict[str, Any]
    name: str = ""


def curve_chart(title: str, series: Sequence[Series], name: str = "", percent: bool = False) -> Chart:
    """Draw curves over epochs, at least one of which has points; the page refers to the chart by its name."""
    series = [_thinned(s) for s in series]
    with matplotlib.rc_context(STYLE):  # pyright: ignore[reportArgumentType]
        figure = Figure(figsize=(5.2, 2.3))
        axes = figure.subplots(gridspec_kw=CURVE_MARGINS)
        for s in series:
            if s.level:
                axes.axhline(s.y[0], color=color(s.color), linestyle=(0, (4, 3)), linewidth=1.2)
            else:
                marker = "o" if s.marks or len(s.x) == 1 else ""
                style = "-" if s.color < NUM_COLORS else (0, (3, 1.5))
                axes.plot(s.x, s.y, color=color(s.color), linestyle=style, linewidth=1.5, marker=marker, markersize=3.2)
        _limit(axes, [value for s in series for value in s.y], percent)
        axes.grid(axis="x", visible=False)
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        axes.set_xlabel("epoch")
        svg, box = _svg(figure, axes)
    curves = [{"name": s.name, "color": s.color % NUM_COLORS, "x": _short(s.x), "y": _short(s.y)} for s in series]
    hover = {"kind": "curves", "box": box, "limits": _short(axes.get_xlim()), "curves": curves}
    legend = [(s.name, s.color % NUM_COLORS, s.level or s.color >= NUM_COLORS) for s in series]
    return Chart(title, svg, legend if len(legend) > 1 else [], hover, name)


def _limit(axes: Axes, values: Sequence[float], percent: bool) -> None:
    """Show all values with some space; from 0 if the lowest is less than 0.3 of the highest."""
    low, high = min(values), max(values)
    space = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
    bottom = 0.0 if 0 <= low < 0.3 * high else low - space
    axes.set_ylim(max(bottom, 0.0) if low >= 0 else bottom, min(high + space, 100.0 + 1.5) if percent else high + space)
    axes.yaxis.set_major_locator(MaxNLocator(5))


def _thinned(series: Series) -> Series:
    if len(series.x) <= POINTS:
        return series
    x, y = (
        [float(np.mean(part)) for part in np.array_split(np.asarray(values, float), POINTS)]
        for values in (series.x, series.y)
    )
    return Series(series.name, x, y, series.color, series.marks, series.level)


def _short(values: Sequence[float]) -> list[float]:
    """Round to the digits that a page shows."""
    return [float(f"{value:.5g}") for value in values]


def matrix_chart(counts: np.ndarray, names: list[str], order: np.ndarray) -> Chart:
    """Draw a confusion matrix (K, K) of true classes (rows) and predictions, coloured by the share of the row."""
    counts = counts[np.ix_(order, order)]
    names = [names[k] for k in order.tolist()]
    classes = len(order)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    image = np.zeros((classes, classes, 4), np.uint8)
    image[..., :3] = WRONG
    image[np.arange(classes), np.arange(classes), :3] = RIGHT
    mistakes = shares * (1 - np.eye(classes))
    depth = np.maximum(shares * np.eye(classes), mistakes / max(mistakes.max(), 0.2))
    image[..., 3] = np.round(255 * np.where(counts > 0, np.maximum(np.sqrt(depth), FAINTEST), 0))
    with matplotlib.rc_context({**STYLE, "axes.grid": False, "image.composite_image": False}):  # pyright: ignore
        labels = [_shortened(name) for name in names] if classes <= NAMED else []
        figure = Figure(figsize=(7.0, 7.0), layout="constrained")
        axes = figure.subplots()
        axes.imshow(image, interpolation="none")
        axes.set(xlabel="predicted class", ylabel="true class")
        ticks = range(len(labels))
        size = 9 if classes <= COUNTED else 7
        axes.set_xticks(ticks, labels, rotation=90, size=size)
        axes.set_yticks(ticks, labels, size=size)
        for spine in axes.spines.values():
            spine.set_visible(True)
        if classes <= COUNTED:
            for row, column in np.argwhere(counts).tolist():
                axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=INK)
        svg, box = _svg(figure, axes)
    cells = np.argwhere(counts)
    values = counts[tuple(cells.T)]
    largest = np.argsort(-values, kind="stable")[:CELLS]
    shown = np.column_stack([cells[largest], values[largest]]).ravel().tolist()
    videos = counts.sum(1).tolist()
    hover = {"kind": "matrix", "box": box, "names": names, "cells": shown, "videos": videos}
    return Chart("Confusion matrix", svg, [], hover, "confusion")


def _shortened(name: str) -> str:
    """Return a name of at most 26 characters; the ends of names differ as often as their beginnings."""
    name = drawable(name)
    return name if len(name) <= 26 else f"{name[:13]}…{name[-12:]}"


def calibration_chart(bins: Calibration) -> Chart:
    """Draw a reliability diagram: the accuracy of each interval of confidence beside that of perfect calibration."""
    count = len(bins.videos)
    centres = (np.arange(count) + 0.5) / count
    with matplotlib.rc_context(STYLE):  # pyright: ignore[reportArgumentType]
        figure = Figure(figsize=(4.2, 3.6))
        top, axes = figure.subplots(2, 1, sharex=True, height_ratios=[1, 3.2], gridspec_kw=CALIBRATION_MARGINS)
        top.bar(centres, bins.videos, width=0.86 / count, color=GRID)
        top.set_ylabel("videos")
        top.yaxis.set_major_locator(MaxNLocator(2, integer=True))
        axes.bar(centres, bins.accuracy, width=0.86 / count, color=color(0), alpha=0.75)
        axes.plot([0, 1], [0, 1], color=TEXT, linestyle=(0, (4, 3)), linewidth=1.2)
        axes.tick_params(axis="x", pad=6)
        for each in (top, axes):
            each.grid(axis="x", visible=False)
        axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="confidence", ylabel="accuracy")
        svg, box = _svg(figure, axes)
    rows = np.column_stack([bins.videos, bins.confidence, bins.accuracy])
    hover = {"kind": "bins", "box": box, "bins": [_short(row) for row in rows.tolist()]}
    return Chart("Calibration", svg, [], hover, "calibration")


def _svg(figure: Figure, axes: Axes) -> tuple[str, list[float]]:
    """Return the SVG of a figure, and left, top, right and bottom of its axes as shares of it."""
    figure.patch.set_visible(False)
    for each in figure.axes:
        each.patch.set_visible(False)
    file = io.StringIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # the browser draws the text, with its fonts
        FigureCanvasSVG(figure).print_svg(file, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r' (width|height)="[^"]*pt"', "", text, count=2)  # the page sets the size
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    text = re.sub(r"#fd([0-9a-f]{2})01", lambda match: f"var(--c{int(match[1], 16)})", text)
    for number, variable in VARIABLES.items():
        text = text.replace(number, variable)
    position = axes.get_position()
    box = [position.x0, 1 - position.y1, position.x1, 1 - position.y0]
    return text, [round(value, 4) for value in box]


def finite(values: Sequence[Any]) -> bool:
    """Return whether all values are finite numbers."""
    return all(isinstance(value, (int, float)) and math.isfinite(value) for value in values)
