"""Figures without pyplot: nothing of the caller's matplotlib (backend, open figures) changes. Any text in them can be read."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from riftcli.files import replacing

OWN = "DejaVu Sans"  # comes with matplotlib
FONTS = """
Noto Sans CJK SC, Noto Sans CJK TC, Noto Sans CJK JP, Noto Sans CJK KR, Source Han Sans SC, Microsoft YaHei, SimHei, PingFang SC,
Hiragino Sans, WenQuanYi Micro Hei, WenQuanYi Zen Hei, Malgun Gothic, Arial Unicode MS, Noto Sans, Noto Sans Arabic,
Noto Sans Devanagari, Noto Sans Thai, Noto Sans Hebrew, FreeSans
"""  # with letters that matplotlib's own font lacks; the first that is installed and has them is taken


MARGINS = {"left": 0.16, "right": 0.97, "bottom": 0.16, "top": 0.96}  # for numbers and one label beside a single picture


def subplots(
    rows: int = 1, columns: int = 1, *, figsize: tuple[float, float], squeeze: bool = True, fixed: bool = False
) -> tuple[Any, Any]:
    """(figure, axes) as of pyplot.subplots; `figure.savefig` needs no backend. Everything is given its place (matplotlib's
    constrained layout, which takes as long as drawing), or with `fixed` the margins of a plain curve.

    Class, run and file names in it are shown as they are: `$` is no formula, and letters that no font here has are written in
    Latin ones.
    """
    from matplotlib.figure import Figure

    class Legible(Figure):
        laid_out = False

        def get_layout_engine(self) -> Any:
            return None if self.laid_out else super().get_layout_engine()

        def savefig(self, fname: Any, **kwargs: Any) -> None:
            make_legible(self)
            layout = self.get_layout_engine()
            if layout is not None:
                layout.execute(self)
                self.laid_out = True  # matplotlib would lay it out again, twice, and draw it twice for that
            if not isinstance(fname, Path):
                super().savefig(fname, **kwargs)
                return
            with replacing(fname) as temporary:
                super().savefig(temporary, format=fname.suffix[1:], **kwargs)

    figure = Legible(figsize=figsize, layout=None if fixed else "constrained")
    if fixed:
        figure.subplots_adjust(**MARGINS)
    return figure, figure.subplots(rows, columns, squeeze=squeeze)


def make_legible(figure: Any) -> None:
    """Give every text a font that has its letters; where there is none, transliterate it."""
    from matplotlib.text import Text
    from matplotlib.ticker import ScalarFormatter

    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):  # an axis writes its own labels again whenever it is drawn
            if isinstance(axis.get_major_formatter(), ScalarFormatter):
                continue  # numbers
            names = [label.get_text() for label in axis.get_ticklabels()]
            readable = [_readable(name) for name in names]
            if readable != names:
                axis.set_ticks(axis.get_majorticklocs(), labels=readable)
    for text in figure.findobj(Text):
        content = text.get_text()
        if not content.startswith("$\\mathdefault"):  # the numbers of a logarithmic axis are formulas
            text.set_parse_math(False)
        font = _font_for(content)
        if font is None:
            text.set_text(_readable(content))
        elif font != OWN:
            text.set_fontfamily([OWN, font])


def _font_for(content: str) -> str | None:
    """The font that has the letters which matplotlib's own lacks, that one itself where it lacks none, or None."""
    letters = frozenset(letter for letter in content if ord(letter) > 0x7F)
    return next((name for name in [OWN, *_candidates()] if not letters or _has(name, letters)), None)


def _readable(content: str) -> str:
    """The text, in Latin letters where no font has its own."""
    if _font_for(content) is not None:
        return content
    from anyascii import anyascii

    return anyascii(content).strip()


@functools.cache
def _candidates() -> list[str]:
    from matplotlib.font_manager import fontManager

    installed = {font.name for font in fontManager.ttflist}
    return [name for name in (part.strip() for part in FONTS.replace("\n", " ").split(",")) if name in installed]


@functools.cache
def _has(font: str, letters: frozenset[str]) -> bool:
    """True when an installed font draws all of these."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    known = get_font(findfont(FontProperties(family=[font]))).get_charmap()
    return all(ord(letter) in known for letter in letters)
