"""Draw the pictures of the README from a trained demo: python docs/make_pictures.py [OUTPUT_DIR].

It writes docs/images/predictions.jpg (one test video per class, with its label and the prediction), curves.png, what
slowfast-visualize draws (inputs.jpg, cam.jpg, attention.jpg) and slowfast-predict (predicted.gif, sheet.jpg), and two
parts of the report, report.png and report_errors.png, for which it needs chromium, chromedriver and selenium.
"""

from __future__ import annotations

import csv
import io
import shutil
import sys
import tempfile
from pathlib import Path

import av
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from slowfast.datasets.reader import read_frames
from slowfast.inference import predict
from slowfast.inference.visualize import execute, parse_args

IMAGES = Path(__file__).with_name("images")
FRAMES = 8


def draw_predictions(predictions: Path, out: Path) -> None:
    """Draw evenly spaced frames of the first video of each class, with the label and the two best classes."""
    with open(predictions, newline="", encoding="utf-8") as file:
        rows = {row["label"]: row for row in reversed([*csv.DictReader(file)])}
    figure = Figure(figsize=(12, 1.35 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(rows), FRAMES + 1, width_ratios=[*[1] * FRAMES, 2.2])
    for axes, row in zip(grid, sorted(rows.values(), key=lambda row: row["id"]), strict=True):
        frames = read_frames(row["id"], lambda n: np.linspace(0, n - 1, FRAMES).round().astype(int).tolist())
        for cell, frame in zip(axes, frames, strict=False):
            side = min(frame.shape[:2])
            top, left = (frame.shape[0] - side) // 2, (frame.shape[1] - side) // 2
            cell.imshow(frame[top : top + side, left : left + side])
        for cell in axes:
            cell.axis("off")
        right = row["top1"] == row["label"]
        axes[-1].text(0, 0.62, row["label"], fontsize=12, weight="bold")
        axes[-1].text(0, 0.3, f"predicted: {row['top1']}", fontsize=11, color="tab:green" if right else "tab:red")
        axes[-1].text(0, 0.02, f"then: {row['top2']}", fontsize=9, color="gray")
    figure.savefig(out, dpi=80, pil_kwargs={"quality": 85})


def draw_visualizations(output_dir: Path) -> None:
    """Draw mixed clips of the demo, and Grad-CAM and attention over one of its videos."""
    seen = ["data/demo/videos/test_00000.mp4", "--weights", str(output_dir)]
    mixed = ["--opts", "AUG.ENABLE", "True", "MIXUP.ENABLE", "True", "MODEL.LOSS_FUNC", "soft_cross_entropy"]
    commands = {
        "inputs": ["inputs", "--cfg", "demo", "--step", "5", "--clips", "4", *mixed],
        "cam": ["cam", *seen],
        "attention": ["attention", *seen],
    }
    with tempfile.TemporaryDirectory() as folder:
        for name, arguments in commands.items():
            drawn = Path(folder, f"{name}.png")
            execute(parse_args([*arguments, "--out", str(drawn)]))
            picture = Image.open(drawn).convert("RGB")
            picture.thumbnail((1280, 1280), Image.Resampling.LANCZOS)
            picture.save(IMAGES / f"{name}.jpg", quality=85)


def draw_prediction(output_dir: Path) -> None:
    """Draw the predicted classes over a test video of the demo, and the frames that the network saw."""
    with tempfile.TemporaryDirectory() as folder:
        drawn, sheet = Path(folder, "predicted.mp4"), Path(folder, "sheet.png")
        command = ["data/demo/videos/test_00001.mp4", "--weights", str(output_dir)]
        predict.execute(predict.parse_args([*command, "--video", str(drawn), "--sheet", str(sheet)]))
        with av.open(str(drawn)) as container:
            frames = [frame.to_image() for frame in container.decode(video=0)][::2]
        for frame in frames:
            frame.thumbnail((300, 300), Image.Resampling.LANCZOS)
        first, *rest = (frame.quantize(64) for frame in frames)
        first.save(IMAGES / "predicted.gif", save_all=True, append_images=rest, duration=100, loop=0)
        picture = Image.open(sheet).convert("RGB")
        picture.thumbnail((1300, 1300), Image.Resampling.LANCZOS)
        picture.save(IMAGES / "sheet.jpg", quality=85)


def draw_report(report: Path, parts: dict[str, tuple[str, int]]) -> None:
    """Draw parts of a report, 1280 pixels wide: name of the picture -> anchor and height."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for option in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(option)
    browser = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    for name, (anchor, height) in parts.items():
        browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": 1280, "height": height, "deviceScaleFactor": 1, "mobile": False},
        )
        browser.get(f"{report.resolve().as_uri()}{anchor}")
        picture = Image.open(io.BytesIO(browser.get_screenshot_as_png()))
        picture.convert("RGB").quantize(128).save(IMAGES / name, optimize=True)
    browser.quit()


def main() -> None:
    """Draw the pictures of a run, by default of output/demo."""
    output_dir = Path(sys.argv[1] if len(sys.argv) > 1 else "output/demo")
    IMAGES.mkdir(exist_ok=True)
    draw_predictions(output_dir / "test" / "predictions.csv", IMAGES / "predictions.jpg")
    shutil.copy(output_dir / "curves.png", IMAGES / "curves.png")
    draw_visualizations(output_dir)
    draw_prediction(output_dir)
    draw_report(output_dir / "report.html", {"report.png": ("", 690), "report_errors.png": ("#confusion", 1560)})


if __name__ == "__main__":
    main()
