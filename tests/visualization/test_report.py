"""The report of a run, the comparison of runs, and the pages in a browser."""

from __future__ import annotations

import csv
import io
import json
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import report_runs
from make_demo_data import write_video

from slowfast.config import format_config, load_config
from slowfast.datasets.lists import VideoList
from slowfast.engine.evaluate import Evaluation
from slowfast.engine.results import write_scores
from slowfast.utils.io import to_json
from slowfast.visualization.charts import matrix_chart
from slowfast.visualization.compare import comparison_table
from slowfast.visualization.report import write_report
from slowfast.visualization.runs import read_run, read_runs

ROOT = Path(__file__).parents[2]
CLASSES, VIDEOS = 60, 240
NAMES = [f"class {k} <b>&amp;" for k in range(CLASSES)]


def evaluation(classes: int = CLASSES, videos: int = VIDEOS) -> Evaluation:
    """Return logits; every third video of class 1 is taken for class 4."""
    rng = np.random.default_rng(0)
    label = np.arange(videos) % classes
    scores = rng.standard_normal((videos, classes)).astype(np.float32)
    scores[np.arange(videos), label] += 4
    wrong = np.flatnonzero(label == 1)[::3]
    scores[wrong, 4] += 9
    return Evaluation(np.arange(videos), label, scores)


def record(kind: str, step: int, **values: Any) -> str:
    return to_json({"kind": kind, "step": step, "epoch": step / 10, **values})


def make_run(folder: Path, lr: float = 0.2, result: Evaluation | None = None, paths: list[str] | None = None) -> Path:
    """Write what a run of three epochs and its test leave."""
    result = result or evaluation()
    paths = paths or [f"absent/{row}.mp4" for row in range(len(result.index))]
    names = NAMES if result.scores.shape[1] == CLASSES else None
    write_scores(folder / "test", result, VideoList(paths, result.label), names)
    metrics = result.metrics()
    content = {"metrics": metrics, "skipped": [["torn.mp4", "cut off"]], "environment": {"git commit": "0123abc"}}
    (folder / "test/metrics.json").write_text(json.dumps(content))
    speed = {"lr": lr, "grad_norm": 2.0, "clips_per_s": 8.0, "data_wait": 0.25, "memory_gib": 1.5}
    lines = [record("start", 0, environment={"git commit": "9999999"})]
    for step in range(1, 31):
        lines.append(record("train", step, loss=3 / step, top1=2.0 * step, top5=3.0 * step, **speed))
        if step % 10 == 0:
            lines.append(record("epoch", step, loss=3 / step, top1=2.0 * step, top5=3.0 * step))
            lines.append(
                record("val", step, **metrics | {"loss": 9 / step, "top1": {10: 40.5, 20: 61.25, 30: 50.0}[step]})
            )
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    cfg = load_config(ROOT / "exp/demo/config.yaml", ["SOLVER.BASE_LR", str(lr), "OUTPUT_DIR", str(folder)])
    (folder / "resolved_config.yaml").write_text(format_config(cfg))
    return folder


class Page:
    """A page in a browser."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, path: Path, theme: str = "light") -> None:
        features = [{"name": "prefers-color-scheme", "value": theme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        self.driver.get(path.resolve().as_uri())

    def value(self, expression: str) -> Any:
        return self.driver.execute_script(f"return {expression}")

    def faults(self) -> list[str]:
        """Return console messages, and requests for anything but the page itself."""
        messages = [entry["message"] for entry in self.driver.get_log("browser")]
        for entry in self.driver.get_log("performance"):
            event = json.loads(entry["message"])["message"]
            if event["method"] == "Network.requestWillBeSent":
                url = event["params"]["request"]["url"]
                if not url.startswith(("data:", "file:")):
                    messages.append(url)
        return messages

    def close(self) -> None:
        self.driver.quit()


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    """Yield a page of a headless Chromium, which is started once."""
    program, controller = shutil.which("chromium"), shutil.which("chromedriver")
    if not program or not controller:
        pytest.skip("chromium and chromedriver are not installed")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = program
    for option in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--window-size=1280,900",
    ):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    opened = Page(webdriver.Chrome(options, webdriver.ChromeService(controller)))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """Return a run whose first two videos exist, with its report."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    folder.mkdir()
    paths = [str(folder / f"{row}.mp4") for row in range(VIDEOS)]
    for row in (1, 121):  # taken for class 4
        write_video(Path(paths[row]), seed=0, split="val", index=row)
    make_run(folder, paths=paths)
    write_report(folder)
    return folder


def test_a_report_shows_the_numbers_of_the_run(run, page):
    page.open(run / "report.html")
    shown = page.value(
        "Object.fromEntries([...document.querySelectorAll('dd')].map(e => [e.dataset.name, e.textContent]))"
    )
    metrics = evaluation().metrics()
    assert float(shown["test: top-1, %"]) == pytest.approx(metrics["top1"], rel=1e-3)
    assert float(shown["test: loss"]) == pytest.approx(metrics["loss"], rel=1e-3)
    assert (shown["validation: top-1, %"], shown["validation: loss"], shown["best epoch"]) == ("61.25", "0.45", "2")
    assert (shown["clips per second"], shown["data wait, %"], shown["peak memory, GiB"]) == ("8", "25", "1.5")
    charts = page.value("[...document.querySelectorAll('.chart')].map(e => e.id.replace('chart-', ''))")
    speed = ["lr", "grad_norm", "clips_per_s", "data_wait", "memory_gib"]
    assert charts == ["loss", "top1", "top5", "mean_class", *speed, "confusion", "calibration"]
    assert page.value("document.querySelectorAll('#class-table tbody tr').length") == CLASSES
    assert page.value("document.querySelector('tr[data-name=\"git commit\"] td:last-child').textContent") == "9999999"
    settings = page.value("document.querySelector('#settings-table').textContent")
    assert "SOLVER.BASE_LR" in settings and "command line" in settings and "config.yaml:" in settings
    assert page.faults() == []


def test_a_report_is_small_and_has_pictures_of_the_videos_that_exist(run, page):
    assert (run / "report.html").stat().st_size < 600_000
    page.open(run / "report.html")
    widths = page.value("[...document.querySelectorAll('.video img')].map(e => e.naturalWidth)")
    assert widths and min(widths) > 100
    assert page.value("document.querySelectorAll('.absent').length") > 0


def test_the_most_confused_pair_comes_first_and_names_are_text(run, page):
    page.open(run / "report.html")
    assert page.value("document.querySelector('.pairs h3').textContent").startswith(NAMES[1] + " " + NAMES[4])
    assert page.value("document.querySelector('#class-table td').textContent") == NAMES[1]  # the lowest accuracy


def test_names_that_matplotlib_has_no_font_for_give_no_warning():
    names = ["向上移动", "b"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert names[0] in matrix_chart(np.eye(2), names, np.arange(2)).svg


def test_a_table_is_sorted_by_the_selected_column(run, page):
    page.open(run / "report.html")
    column = "[...document.querySelectorAll('#class-table tbody tr')].map(row => Number(row.cells[4].textContent))"
    click = "document.querySelectorAll('#class-table th button')[4].click()"
    for sign in (1, -1):
        page.value(click)
        losses = page.value(column)
        assert losses == sorted(losses, reverse=sign < 0) and losses[0] != losses[-1]


def test_the_pointer_shows_values(run, page):
    page.open(run / "report.html")
    move = """(() => {
        const plot = document.querySelector('#chart-%s .plot'), box = plot.getBoundingClientRect();
        const data = JSON.parse(plot.parentNode.querySelector('script').textContent).box;
        const at = (share, low, high) => low + share * (high - low);
        plot.dispatchEvent(new PointerEvent('pointermove', {
            clientX: box.left + box.width * at(%g, data[0], data[2]),
            clientY: box.top + box.height * at(%g, data[1], data[3]),
        }));
        return plot.querySelector('.tip').textContent;
    })()"""
    assert "epoch 3\ntraining  0.1\nvalidation  0.3\ntest" in page.value(move % ("loss", 0.99, 0.5))
    corner = page.value(move % ("confusion", 0.001, 0.001)).split("\n")
    assert corner[0].removeprefix("true: ") == corner[1].removeprefix("predicted: ") and "of 4 videos" in corner[2]
    assert "accuracy" in page.value(move % ("calibration", 0.99, 0.5))


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_contrasts_with_its_page_in_both_themes(theme, run, page):
    page.open(run / "report.html", theme)
    for place, least in (("body", 9), ("figcaption", 9), ("dt", 4.5), (".chart text", 4.5)):
        paint = "fill" if "text" in place else "color"
        ink = page.value(f"getComputedStyle(document.querySelector('{place}')).{paint}")
        ground = page.value("getComputedStyle(document.querySelector('.card')).backgroundColor")
        assert contrast(ink, ground) > least, (place, ink, ground)
    width = page.value("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert width[0] <= width[1]
    assert page.faults() == []


def contrast(one: str, other: str) -> float:
    """Return the contrast ratio of two CSS colours, as WCAG 2 defines it."""
    values: list[float] = []
    for text in (one, other):
        rgb = np.array([float(part) for part in text[text.index("(") + 1 : -1].split(",")[:3]]) / 255
        linear = np.where(rgb <= 0.03928, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        values.append(float(linear @ [0.2126, 0.7152, 0.0722]) + 0.05)
    return max(values) / min(values)


def test_runs_are_compared_in_results_and_settings(run, page, tmp_path, run_here):
    other = make_run(tmp_path / "second", lr=0.5)
    out = tmp_path / "both.html"
    done = run_here(report_runs, run, other, "--out", out, "--format", "csv")
    rows = {row[0]: row[1:] for row in csv.reader(io.StringIO(done.stdout))}
    assert rows[""] == ["first", "second"] and rows["SOLVER.BASE_LR"] == ["0.2", "0.5"]
    assert float(rows["test: top-1, %"][0]) == pytest.approx(evaluation().metrics()["top1"], rel=1e-4)
    assert "OUTPUT_DIR" not in rows and "SOLVER.MAX_EPOCH" not in rows
    page.open(out)
    assert page.value("document.querySelectorAll('.chart').length") == 12
    assert page.value("document.querySelectorAll('#chart-train_lr .legend > span').length") == 2
    assert (
        page.value("document.querySelector('tr[data-name=\"SOLVER.BASE_LR\"]').textContent") == "SOLVER.BASE_LR0.20.5"
    )
    assert page.faults() == []


def test_top5_of_at_most_five_classes_is_left_out(run, tmp_path):
    few = Evaluation(np.arange(6), np.arange(6) % 4, np.zeros((6, 4), np.float32))
    folder = make_run(tmp_path / "few", result=few)
    config = folder / "resolved_config.yaml"
    config.write_text(config.read_text().replace("NUM_CLASSES: 8", "NUM_CLASSES: 4"))
    names = [row[0] for row in comparison_table(read_runs([folder, run]))]
    assert names[1:5] == ["test: top-1, %", "test: mean class, %", "test: loss", "test: top-5, %"]
    assert not [name for name in read_run(folder).numbers() if "top-5" in name]
    assert "top-5" in write_report(run, tmp_path / "a.html").read_text()
    assert "top-5" not in write_report(folder).read_text().partition('id="settings"')[0].lower()


def test_a_curve_of_epochs_with_few_steps_shows_their_means(tmp_path):
    lines = [record("epoch", step, loss=step, top1=0.0) for step in (10, 20, 30)]
    lines.insert(2, record("train", 25, loss=99.0, lr=1e-3))
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    run = read_run(tmp_path)
    assert run.points("train", "loss") == ([1, 2, 3], [10, 20, 30])
    assert run.points("train", "lr") == ([2.5], [1e-3])


def test_runs_of_folders_with_the_same_name_are_named_for_their_paths(run, tmp_path):
    other = make_run(tmp_path / "first")
    assert [each.name for each in read_runs([run, other])] == [str(run), str(other)]
    assert [each.name for each in read_runs([run, make_run(tmp_path / "second")])] == ["first", "second"]


def test_one_run_gets_its_report_again(run, tmp_path, run_here):
    before = (run / "report.html").read_text()
    done = run_here(report_runs, run, "--table", tmp_path / "table.md")
    assert (run / "report.html").read_text() == before and (done.returncode, done.stdout) == (0, "")
    assert (tmp_path / "table.md").read_text().splitlines()[1].startswith("| ---")


@pytest.mark.parametrize("case", ["no folder", "no run", "not writable"])
def test_a_wrong_input_is_one_line_and_exit_code_2(case, run, tmp_path, run_here):
    arguments = {
        "no folder": [tmp_path / "absent"],
        "no run": [run, tmp_path],
        "not writable": [run, "--out", run / "metrics.jsonl" / "report.html"],
    }
    done = run_here(report_runs, *arguments[case])
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert case != "not writable" or "--out" in done.stderr


@pytest.mark.parametrize("line", ['{"kind": "start", "step": 0}', '{"kind": "test", "top1": 50.0}', ""])
def test_a_run_that_has_hardly_begun_has_a_report(line, tmp_path):
    (tmp_path / "metrics.jsonl").write_text(line + "\n")
    assert write_report(tmp_path).is_file()


def test_a_report_without_a_test_is_of_the_best_validation(tmp_path):
    make_run(tmp_path)
    (tmp_path / "test").rename(tmp_path / "validation")
    assert "of the best validation." in write_report(tmp_path).read_text() and read_run(tmp_path).tests == {}


@pytest.mark.slow
def test_the_names_of_a_matrix_are_as_they_are():
    # matplotlib would parse what is between two dollars, and refuses a byte that is not UTF-8
    svg = matrix_chart(np.eye(2, dtype=int), [r"from $\some_{ to $5", "caf\udce9"], np.arange(2)).svg
    assert r"from $\some_{ to $5" in svg and "caf?" in svg


def test_a_report_of_many_videos_and_classes_is_below_1_mb(tmp_path):
    make_run(tmp_path, result=evaluation(classes=1000, videos=5000))
    assert write_report(tmp_path).stat().st_size < 1_000_000
