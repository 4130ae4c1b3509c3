"""Names from outside in texts of ours: as they are, and never a command to what shows them."""

from __future__ import annotations

import hashlib
import html
import re
from pathlib import Path

# control characters, those that turn the direction of what follows, line separators, and halves of letters (os.fsdecode)
_ORDERS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "$": r"\$", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
    "\n": " ",
}  # fmt: skip
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def shown(text: str) -> str:
    """For a terminal or a log: `\\x1b[2J` for what would clear the screen. Lines and tabs stay."""
    return _ORDERS.sub(lambda found: found[0].encode("unicode_escape", "surrogatepass").decode(), text)


def one_line(name: str | Path) -> str:
    """A name that any terminal, table, page and JSON can carry: also without line breaks and tabs."""
    text = str(name)
    return text if text.isprintable() else shown(text).replace("\n", "\\n").replace("\t", "\\t")


def file_name(text: str, most: int = 240) -> str:
    """One name of a file or folder: no way out of where it stands, and no longer than file systems take (255 bytes)."""
    name = one_line(text).replace("/", "-")
    name, raw = f"-{name}" if name in ("", ".", "..") else name, name.encode()
    return name if len(raw) <= most else f"{raw[: most - 13].decode(errors='ignore')}-{hashlib.sha256(raw).hexdigest()[:12]}"


def latex(text: str) -> str:
    """For a LaTeX table."""
    return "".join(_LATEX.get(letter, letter) for letter in shown(text)).replace("+-", r"$\pm$")


def markdown(text: object) -> str:
    """Inside Markdown: no table, link, tag or emphasis comes of it."""
    safe = html.escape(one_line(str(text)), quote=False)
    return "".join(f"\\{letter}" if letter in "\\|`*_[]" else letter for letter in safe)


def cell(value: object) -> object:
    """For a CSV that people open in a spreadsheet: a text that it would compute begins with an apostrophe (CWE-1236)."""
    if not isinstance(value, str) or not value.startswith(_FORMULA):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value
