"""rift compare and rift report."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from evaluation_runs import make_folder, read

from riftcli import recipe as recipes


def test_compare_means_spread_best_and_change(rift, trained, tmp_path):
    code, out, err = rift("compare", trained / "full", trained / "rift", trained / "lora", "--out", "t", "--json")
    assert code == 0, err
    report = read(out)
    assert report["baseline"] == "full"
    cells = {(row["run"], row["column"]): row for row in report["rows"]}
    accs = [json.loads((trained / "rift" / f"s{i}" / "metrics.json").read_text())["metrics"]["acc"]["value"] for i in range(2)]
    base = cells["full", "acc"]["mean"]
    found = cells["rift", "acc"]
    assert found["mean"] == pytest.approx(np.mean(accs))
    assert found["std"] == pytest.approx(np.std(accs, ddof=1))
    assert found["change"] == pytest.approx(np.mean(accs) / base - 1)
    bases = [json.loads((trained / "full" / f"s{i}" / "metrics.json").read_text())["metrics"]["cka"]["value"] for i in range(2)]
    ckas = [json.loads((trained / "rift" / f"s{i}" / "metrics.json").read_text())["metrics"]["cka"]["value"] for i in range(2)]
    differences = np.subtract(ckas, bases)
    t = abs(differences.mean()) / (differences.std(ddof=1) / np.sqrt(2))
    assert cells["rift", "cka"]["p"] == pytest.approx(1 - 2 / np.pi * np.arctan(t)), "Student's t with one degree of freedom"
    assert f" %, p {cells['rift', 'cka']['p']:.2g})" in err
    assert cells["lora", "acc"]["p"] is None, "one run has no partner"
    assert cells["lora", "acc"]["std"] is None
    assert cells["full", "acc"]["change"] is None
    top = max(cells[name, "acc"]["mean"] for name in ("full", "rift", "lora"))
    assert [cells[name, "acc"]["best"] for name in ("full", "rift", "lora")] == [
        cells[name, "acc"]["mean"] == top for name in ("full", "rift", "lora")
    ]
    lowest = min(cells[name, "trainable parameters"]["mean"] for name in ("full", "rift", "lora"))
    assert cells["lora", "trainable parameters"]["mean"] == lowest
    assert cells["lora", "trainable parameters"]["best"]
    assert 0.1 < cells["full", "peak memory GB"]["mean"] < 20  # of this process
    text = (tmp_path / "t" / "compare.md").read_text()
    assert text.splitlines()[0].startswith("| run | acc | cka |")
    assert f"{found['mean']:.4f} +- {found['std']:.4f}" in text
    latex = (tmp_path / "t" / "compare.tex").read_text()
    assert r"\begin{tabular}" in latex
    assert r"$\pm$" in latex
    assert "%)" not in latex.replace(r"\%)", "")
    assert len(list(csv.DictReader((tmp_path / "t" / "compare.csv").open()))) == len(report["rows"])


def test_compare_over_data_sets_has_a_mean_and_rows_by_method():
    from riftcli.report.compare import compare
    from riftcli.report.records import Record

    def recipe(data: str, regularizer: str) -> recipes.Recipe:
        text = f"model: {{name: vit_tiny_patch16_224}}\ndata: {{format: {data}}}\nregularizer: {{name: {regularizer}}}\n"
        return recipes.parse(text, "r.yaml", [])

    def made(data: str, regularizer: str, acc: float) -> Record:
        return Record(f"{data}-{regularizer}", data, recipe(data, regularizer), data, 0, Path(), {"acc": acc}, {"acc": True})

    scores = [("digits", "none", 0.5), ("demo_fashion", "none", 0.7), ("digits", "rift", 0.6), ("demo_fashion", "rift", 0.6)]
    records = [made(*score) for score in scores]
    found = compare(records, [], None, by_method=False)
    assert found.columns == ["acc (digits)", "acc (demo_fashion)", "acc (mean)"]
    assert found.rows["full"]["acc (mean)"].mean == pytest.approx(0.6)
    assert found.rows["full + rift"]["acc (digits)"].change == pytest.approx(0.2)
    assert [found.rows[name]["acc (demo_fashion)"].best for name in ("full", "full + rift")] == [True, False]


def test_a_t_test_is_of_the_same_seeds_and_of_nothing_else():
    from scipy.stats import ttest_rel

    from riftcli.report.compare import paired_p

    ours, base = [((0, 0), 0.8), ((1, 0), 0.9), ((2, 0), 0.85)], [((1, 0), 0.7), ((0, 0), 0.75), ((2, 0), 0.71)]
    assert paired_p(ours, base) == pytest.approx(ttest_rel([0.8, 0.9, 0.85], [0.75, 0.7, 0.71]).pvalue)
    assert paired_p(ours, base[:2]) is None, "other seeds"
    assert paired_p(ours[:1], base[1:2]) is None, "one seed"
    assert paired_p([*ours, ours[0]], [*base, base[1]]) is None, "a seed twice: what belongs to what?"
    assert paired_p(ours, ours) is None, "no differences"
    assert paired_p([((0, 0), 0.824), ((1, 0), 0.831)], [((0, 0), 0.812), ((1, 0), 0.819)]) is None, "equal but for rounding"


def test_runs_are_paired_by_seed_and_by_the_very_fold():
    from riftcli.report.records import Record

    def repeat(val: str, seed: int = 0) -> tuple:
        text = f"model: {{name: vit_tiny_patch16_224}}\ndata: {{format: digits, val: {val}}}\n"
        return Record("r", "r", recipes.parse(text, "r.yaml", []), "digits", seed, Path(), {}).repeat

    first = repeat("{from: train, folds: 5, fold: 0}")
    assert first == repeat("{from: train, folds: 5, fold: 0}")
    others = ["{from: train, folds: 5, fold: 1}", "{from: train, folds: 4, fold: 0}", "{from: train, folds: 5, fold: 0, seed: 1}"]
    assert first not in [repeat(other) for other in others]
    assert repeat("null") == repeat("test") == repeat("{from: train, fraction: 0.2}") == (0,)
    assert repeat("null", seed=3) == (3,)


def test_compare_by_a_measure_that_the_baseline_lacks(rift, run, trained, tmp_path):
    other = shutil.copytree(trained / "rift" / "s0", tmp_path / "other")
    assert rift("sharpness", "--run", other)[0] == 0
    code, out, err = rift("compare", run, other, "--metrics", "sharpness", "--json")
    assert code == 0, err
    (row,) = read(out)["rows"]
    assert (row["run"], row["change"], row["p"]) == ("other", None, None)


def test_a_page_where_a_method_is_missing_on_one_data_set(rift, run, trained, write_recipe, tiny_recipe, tmp_path):
    tiny_recipe["data"] = {"format": "image_folder", "root": make_folder(tmp_path).partition(":")[2]}
    tiny_recipe |= {"regularizer": {"name": "none"}, "train": {"epochs": 1, "batch_size": 4, "workers": 0}}
    code, _, err = rift("finetune", "--recipe", write_recipe(tiny_recipe), "--out", "shapes-run")
    assert code == 0, err
    other = shutil.copytree(trained / "rift" / "s0", tmp_path / "other")
    code, _, err = rift("report", run, "shapes-run", other, "--out", "page.html")
    assert code == 0, err
    assert "accuracy (shapes)" in (tmp_path / "page.html").read_text()


def test_the_spread_of_many_runs_has_a_density_and_of_two_marks_only(trained):
    import base64
    from dataclasses import replace

    from riftcli.evaluation.candidates import open_runs
    from riftcli.report import figures
    from riftcli.report.records import record

    (first, second), one = [record(s) for s in open_runs([trained / "full"], [])], figures.colours(["full", "narrow"])
    many = [replace(first, label=f"n{i}", group="narrow", values={"cka": 0.99 + 1e-6 * i}) for i in range(figures.ENOUGH)]

    def areas(groups) -> int:
        found = figures.spread_of_runs(groups, "cka", one)
        return base64.b64decode(found.picture.partition(",")[2]).decode().count("FillBetween")

    assert figures.spread_of_runs({"full": [first]}, "cka", one) is None
    assert areas({"full": [first, second]}) == 0
    assert areas({"full": [first, second], "narrow": many}) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--metrics", "accc"], "--metrics accc: no run has it (did you mean 'acc'?); measured: acc, cka, "),
        (["--baseline", "fulll"], "--baseline fulll: no such row (did you mean 'full'?); rows: full, rift"),
    ],
)
def test_compare_refuses(rift, trained, options, message):
    code, _, err = rift("compare", trained / "full", trained / "rift", *options)
    assert code == 2
    assert err.startswith(f"error: {message}")


def test_an_unfinished_run_is_named(rift, run):
    (run / "metrics.json").unlink()
    assert rift("compare", run)[::2] == (2, f"error: {run}: no metrics.json; the run has not finished\n")


def test_report_holds_everything_and_needs_no_network(rift, run, trained, tmp_path):
    other = shutil.copytree(trained / "rift" / "s0", tmp_path / "other")
    code, _, err = rift("report", run, other, "--evaluate", "--out", "page.html")
    assert code == 0, err
    assert err.splitlines()[-1] == "page: page.html"
    page = (tmp_path / "page.html").read_text()
    for wanted in (
        "Kept against learned",
        "Calibration",
        "Confusion matrix of myrun",
        "PCA map of myrun",
        "t-SNE map of other",
        "Layers of myrun",
        "Attention of myrun",
        "sharpness",
        "validation retention/demo_fashion/knn",
        "strength: 1.0",
    ):
        assert wanted in page, wanted
    assert "http" not in page.replace("http://www.w3.org", "")
    assert "src=&#" not in page
    assert page.count("data:text/csv;base64,") > 10
    code, _, err = rift("report", run)
    assert (code, err) == (0, f"page: {run / 'report.html'}\n")


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def in_browser(page: Path, place: Path, width: int = 1280) -> str:
    """The document as Chromium has it after the page's own scripts."""
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
    ]
    options += ["--disable-component-update", "--disable-sync", f"--user-data-dir={place / 'profile'}"]
    command = [CHROMIUM, *options, f"--window-size={width},2000", "--virtual-time-budget=5000", "--dump-dom", f"file://{page}"]
    return subprocess.run(command, capture_output=True, text=True, timeout=120).stdout


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_runs_are_sorted_by_a_measure_in_a_real_browser(rift, trained, tmp_path):
    runs = [trained / "full", trained / "rift", trained / "lora"]
    assert rift("report", *runs, "--out", "page.html")[0] == 0
    scores = {}
    for run in runs:
        found = [json.loads(path.read_text())["metrics"]["cka"]["value"] for path in run.glob("**/s?/metrics.json")]
        found = found or [json.loads((run / "metrics.json").read_text())["metrics"]["cka"]["value"]]
        scores[run.name] = float(np.mean(found))
    press = """<script>const button = [...document.querySelectorAll("table.results button")]
      .find(b => b.closest("th").textContent.startsWith("similarity to the pretrained model (CKA)"));
    const names = () => [...document.querySelector("table.results tr").children].slice(1).map(c => c.textContent).join(" ");
    button.click(); const first = names(); button.click();
    document.body.dataset.found = `${first} then ${names()} ${button.getAttribute("aria-pressed")}`;</script>"""
    shown = tmp_path / "pressed.html"
    shown.write_text(Path("page.html").read_text().replace("</body>", press + "</body>"))
    order = sorted(scores, key=lambda name: -scores[name])
    assert f'data-found="{" ".join(order)} then {" ".join(reversed(order))} false"' in in_browser(shown, tmp_path)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_in_a_real_browser(trained, tmp_path, width):
    """Every picture loads, and nothing but tables and figures is wider than the screen."""
    page = (trained / "full" / "s0" / "report.html").read_text()
    probe = """<script>addEventListener("load", () => { const bad = [...document.images].filter(i => !i.naturalWidth).length;
    document.body.dataset.found = `images ${document.images.length} broken ${bad} `
      + `overflow ${document.documentElement.scrollWidth > document.documentElement.clientWidth}`; })</script>"""
    shown = tmp_path / "page.html"
    shown.write_text(page.replace("</body>", probe + "</body>"))
    shown_as = in_browser(shown, tmp_path, width)
    count = page.count("<img ")
    assert count >= 5
    assert f'data-found="images {count} broken 0 overflow false"' in shown_as, shown_as[-2000:]
