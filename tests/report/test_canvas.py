"""Names of any script in pictures, and `$` in them."""

from __future__ import annotations

import warnings

import pytest

from riftcli.report.figures import confusion
from riftcli.report.plots import canvas


def drawn(classes: list[str], tmp_path) -> list[str]:
    figure, axis = canvas.subplots(figsize=(3, 3))
    axis.set_xticks(range(len(classes)), classes)
    axis.set(yscale="log", ylim=(0.01, 100))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns of a letter that its font lacks
        figure.savefig(tmp_path / "x.png")
    return [label.get_text() for label in axis.get_xticklabels()]


def test_letters_that_no_font_has_are_transliterated(tmp_path, monkeypatch):
    monkeypatch.setattr(canvas, "_candidates", list)
    assert drawn(["皮肤", "Ärzte", "plain"], tmp_path) == ["PiFu", "Ärzte", "plain"]


def test_a_font_that_has_them_is_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(canvas, "_candidates", lambda: ["STIXNonUnicode", "Last Resort High-Efficiency"])
    figure, axis = canvas.subplots(figsize=(3, 3))
    label = axis.set_xlabel("皮肤")
    canvas.make_legible(figure)
    assert label.get_text() == "皮肤"
    assert label.get_fontfamily() == ["DejaVu Sans", "Last Resort High-Efficiency"]


@pytest.mark.parametrize("name", ["a$b$", "$x^", "\\frac{$", "a_b"])
def test_a_dollar_is_no_formula(tmp_path, name):
    assert drawn([name], tmp_path) == [name]
    assert confusion(name, {"classes": [name, "b"], "counts": [[1, 0], [0, 1]]}).picture.startswith("data:image/svg+xml;base64,")
