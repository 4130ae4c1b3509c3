"""Recipes that are not written out: `<set>_<method>` is `<set>_full.yaml` with the sections of `methods/<method>.yaml`."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

from riftcli.recipe.sections import TOP_LEVEL

BASE = "_full.yaml"


def sets(folder: Path) -> list[str]:
    """Names of the sets: isic, medfm_chest, ..."""
    return sorted(path.name.removesuffix(BASE) for path in folder.glob(f"*{BASE}"))


def methods(folder: Path) -> list[str]:
    """Names of the methods: linear, lora_rift, ..."""
    return sorted(path.stem for path in (folder / "methods").glob("*.yaml"))


def members(folder: Path) -> list[str]:
    """Names of all recipes that are made here, without those that have a file of their own."""
    written = {path.stem for path in folder.glob("*.yaml")}
    found = [(name, f"{name}_{method}", method) for name in sets(folder) for method in methods(folder)]
    return sorted(
        full for name, full, method in found if full not in written and f"{name}_{method.removeprefix('full_')}" not in written
    )


def compose(folder: Path, member: str) -> str:
    """The text of a member: a whole recipe, with a header of its own."""
    method = max((m for m in methods(folder) if member.endswith(f"_{m}")), key=len)
    name = member.removesuffix(f"_{method}")
    head, blocks = _parts((folder / f"{name}{BASE}").read_text(encoding="utf-8"))
    own_head, own_blocks = _parts((folder / "methods" / f"{method}.yaml").read_text(encoding="utf-8"))
    decay = next((line.partition(": ")[2] for line in own_head if line.startswith("# weight_decay: ")), None)
    if decay is not None:
        blocks["optim"] = re.sub(r"\bweight_decay: [0-9.e-]+", f"weight_decay: {decay}", blocks["optim"])
    scale = next((line.partition("x")[2] for line in own_head if line.startswith("# lr: x")), None)
    if scale is not None:
        blocks["optim"] = re.sub(r"\blr: ([0-9.e-]+)", lambda m: f"lr: {float(m[1]) * float(scale):g}", blocks["optim"])
    for line in own_head:
        added = re.match(r"# optim: (.+)", line)
        if added:
            blocks["optim"] = re.sub(r"\}\s*$", f", {added[1]}}}", blocks["optim"])
    merged = blocks | own_blocks
    order = sorted(merged, key=TOP_LEVEL.index)
    return "\n".join([*_header(member, name, head, own_head), *(merged[key] for key in order)]) + "\n"


def _parts(text: str) -> tuple[list[str], dict[str, str]]:
    """(comment lines at the top, top-level key -> its lines)."""
    lines = text.rstrip("\n").split("\n")
    count = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    blocks: dict[str, list[str]] = {}
    for line in lines[count:]:
        key = re.match(r"([a-z_]+):", line)
        if key:
            blocks[key[1]] = []
        blocks[list(blocks)[-1]].append(line)
    return lines[:count], {key: "\n".join(block) for key, block in blocks.items()}


def _header(member: str, name: str, head: list[str], own: list[str]) -> list[str]:
    title = f"# {head[0].removeprefix('# ').partition(':')[0]}: {own[0].removeprefix('# ')}"
    commands = [line.replace(f"{name}_full.yaml", f"{member}.yaml") for line in head if line.startswith("#   ")]
    row = next((line.removeprefix("# row: ") for line in own if line.startswith("# row: ")), None)
    column = re.search(r"column (\S+) of (Table \w+ of the RIFT paper)", " ".join(head))
    notes = [
        f"Made of {name}_full.yaml and methods/{member.removeprefix(f'{name}_')}.yaml; docs/results.md holds what we measured."
    ]
    if row and column:
        notes.append(f"Stands for row {row}, column {column[1]} of {column[2]}.")
    notes += [line.removeprefix("# ") for line in own[1:] if not re.match(r"# (row|lr|weight_decay|optim): ", line)]
    data = [i for i, line in enumerate(head) if line.startswith("# Data: ")]
    notes += [line.removeprefix("# ") for line in head[data[0] :]] if data else []
    wrapped = textwrap.wrap(" ".join(notes), 128, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)
    return [title, *commands, *wrapped]
