"""Recipes that are not written out: `<set>_<method>` is `<set>_full.yaml` with the sections of `methods/<method>.yaml`.

For models with two towers it is `<set>_flyp.yaml` with those of `methods_two_towers/<method>.yaml`.
"""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

from riftcli.recipe.sections import TOP_LEVEL

FAMILIES = {"methods": "_full.yaml", "methods_two_towers": "_flyp.yaml"}  # folder of methods -> what the base of a set ends in


def sets(folder: Path, kind: str = "methods") -> list[str]:
    """Names of the sets: isic, medfm_chest, ..."""
    return sorted(path.name.removesuffix(FAMILIES[kind]) for path in folder.glob(f"*{FAMILIES[kind]}"))


def methods(folder: Path, kind: str = "methods") -> list[str]:
    """Names of the methods: linear, lora_rift, ..."""
    return sorted(path.stem for path in (folder / kind).glob("*.yaml"))


def members(folder: Path) -> list[str]:
    """Names of all recipes that are made here, without those that have a file of their own."""
    written = {path.stem for path in folder.glob("*.yaml")}
    found = [(name, f"{name}_{m}", m) for kind in FAMILIES for name in sets(folder, kind) for m in methods(folder, kind)]
    return sorted(
        full for name, full, method in found if full not in written and f"{name}_{method.removeprefix('full_')}" not in written
    )


def _place(folder: Path, member: str) -> tuple[str, str, str]:
    """(folder of its method, set, method) of a member."""
    found = [(k, n, m) for k in FAMILIES for n in sets(folder, k) for m in methods(folder, k) if f"{n}_{m}" == member]
    return max(found, key=lambda place: len(place[2]))


def compose(folder: Path, member: str) -> str:
    """The text of a member: a whole recipe, with a header of its own."""
    kind, name, method = _place(folder, member)
    base = f"{name}{FAMILIES[kind]}"
    head, blocks = _parts((folder / base).read_text(encoding="utf-8"))
    own_head, own_blocks = _parts((folder / kind / f"{method}.yaml").read_text(encoding="utf-8"))
    merged = _merged(blocks, own_head, own_blocks)
    return "\n".join([*_header(member, base, f"{kind}/{method}.yaml", head, own_head), merged]) + "\n"


def with_method(folder: Path, text: str, method: str) -> str:
    """A recipe of full finetuning with the sections of `methods/<method>.yaml`; its own header stays."""
    head, blocks = _parts(text)
    own = _parts((folder / "methods" / f"{method}.yaml").read_text(encoding="utf-8"))
    return "\n".join([*head, _merged(blocks, *own)]) + "\n"


def with_sections(text: str, sections: dict[str, str]) -> str:
    """A recipe with these sections instead of its own: key -> what stands behind it."""
    head, blocks = _parts(text)
    return "\n".join([*head, _merged(blocks, [], {key: f"{key}: {value}" for key, value in sections.items()})]) + "\n"


def _merged(blocks: dict[str, str], own_head: list[str], own_blocks: dict[str, str]) -> str:
    """The sections of a recipe with those of a method, and what the method's header says about rates."""
    decay = next((line.partition(": ")[2] for line in own_head if line.startswith("# weight_decay: ")), None)
    if decay is not None:
        blocks["optim"] = re.sub(r"\bweight_decay: [0-9.e-]+", f"weight_decay: {decay}", blocks["optim"])
    scale = next((line.partition("x")[2] for line in own_head if line.startswith("# lr: x")), None)
    if scale is not None:
        blocks["optim"] = re.sub(r"\blr: ([0-9.e-]+)", lambda m: f"lr: {float(m[1]) * float(scale):g}", blocks["optim"])
    for line in own_head:
        added = re.match(r"# (optim|train): (.+)", line)
        if added:
            blocks[added[1]] = re.sub(r"\}(\s*(#.*)?)$", rf", {added[2]}}}\1", blocks[added[1]])
    merged = blocks | own_blocks
    return "\n".join(merged[key] for key in sorted(merged, key=TOP_LEVEL.index))


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


def _header(member: str, base: str, method: str, head: list[str], own: list[str]) -> list[str]:
    title = f"# {head[0].removeprefix('# ').partition(':')[0]}: {own[0].removeprefix('# ')}"
    commands = [line.replace(base, f"{member}.yaml") for line in head if line.startswith("#   ")]
    row = next((line.removeprefix("# row: ") for line in own if line.startswith("# row: ")), None)
    column = re.search(r"column (\S+) of (Table \w+ of the \w+ paper)", " ".join(head))
    notes = [f"Made of {base} and {method}; docs/results.md holds what we measured."]
    if row and column:
        notes.append(f"Stands for row {row}, column {column[1]} of {column[2]}.")
    notes += [line.removeprefix("# ") for line in own[1:] if not re.match(r"# (row|lr|weight_decay|optim|train): ", line)]
    data = [i for i, line in enumerate(head) if line.startswith("# Data: ")]
    notes += [line.removeprefix("# ") for line in head[data[0] :]] if data else []
    wrapped = textwrap.wrap(" ".join(notes), 128, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)
    return [title, *commands, *wrapped]
