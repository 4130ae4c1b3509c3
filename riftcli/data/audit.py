"""The audit of a recipe's data before any training: every image decoded, every split counted and compared with the others."""

from __future__ import annotations

import functools
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from riftcli.console import Console
from riftcli.data.classes import class_counts, with_classes
from riftcli.data.findings import Audit
from riftcli.data.folders import ignored_text, unusual
from riftcli.data.images import EXTENSIONS
from riftcli.data.inspection import MOST, Inspected, inspect_file, inspect_pixels, near_pairs
from riftcli.data.parallel import in_parallel
from riftcli.data.split import Split
from riftcli.data.splits import cut, load_split, shared_samples
from riftcli.errors import DataError
from riftcli.recipe.data_sources import DataSection
from riftcli.recipe.image_sections import InputSection

SHOWN_PAIRS = 6  # on the page, per pair of splits


def check_data(
    recipe: str,
    data: DataSection,
    retention: Sequence[DataSection],
    reading: InputSection,
    console: Console,
    near: int = 4,
    workers: int | None = None,
) -> Audit:
    """Read everything that a recipe (its name, the rest its sections) names. Bad data raises nothing: it becomes a finding.

    near: bits of the 64-bit perceptual hash in which near-duplicates may differ, 0 to leave the search out.
    """
    audit = Audit(recipe, data, reading)
    sources = [("", data)]
    for i, other in enumerate(retention):
        taken = f"{other.name}/" in dict(sources)
        sources.append((f"{other.name}-{i}/" if taken else f"{other.name}/", other))
    for prefix, source in sources:
        own = _load(audit, prefix, source)
        _inspect(audit, own, console, workers)
        _check_classes(audit, own)
        _check_modes(audit, own)
        _check_captions(audit, own)
        _check_pairs(audit, own, source)
        _check_content(audit, own, source)
        if near:
            _check_near(audit, own, near)
    return audit


def _load(audit: Audit, prefix: str, data: DataSection) -> list[str]:
    """Load what can be loaded into the audit; return the names."""

    def attempt(name: str, load: Callable[[], Any]) -> Any:
        try:
            return load()
        except DataError as error:
            problems = error.problems or [str(error)]
            audit.add("error", "labels", [prefix + name], str(error), problems if error.problems else None, len(problems))
            return None

    held = {name: spec for name, spec in (("val", data.val), ("test", data.test)) if spec is not None and spec.held_out}
    found: dict[str, Split] = attempt("train", functools.partial(cut, data.source, data.train, held.get("val"), held.get("test")))
    if found is None and held:  # what cannot be cut is said; the rest is looked at whole
        whole = attempt("train", functools.partial(load_split, data.source, data.train))
        found = {} if whole is None else {"train": whole}
    found = found or {}
    for name, spec in (("val", data.val), ("test", data.test)):
        if spec is None or spec.held_out or (prefix and name == "test" and spec == data.train):
            continue  # leave-one-out retention: one split, not two
        split = attempt(name, functools.partial(load_split, data.source, spec))
        if split is not None:
            found[name] = split
    found = {name: found[name] for name in ("train", "val", "test") if name in found}
    for name in ("val", "test"):
        if name in found and "train" in found:
            trained, allow = found["train"].classes, data.rules.allow_missing_classes
            same = attempt(name, functools.partial(with_classes, trained, found[name], allow))
            found[name] = same if same is not None else found[name]
    audit.splits |= {prefix + name: split for name, split in found.items()}
    audit.data_of |= {prefix + name: prefix.removesuffix("/") or data.name for name in found}
    for name, split in found.items():
        unread = unusual(split.ignored)
        if unread:
            message = f"{ignored_text(unread)} files are ignored; images are {', '.join(EXTENSIONS)}"
            audit.add("warning", "ignored", [prefix + name], message, count=sum(unread.values()))
        if split.left_out:
            audit.add(
                "warning", "missing", [prefix + name], f"{split.left_out} listed images are not there", count=split.left_out
            )
    return [prefix + name for name in found]


def _inspect(audit: Audit, names: list[str], console: Console, workers: int | None) -> None:
    """Every image once, even when splits share files."""
    depth = audit.reading.bit_depth
    files = list({path: None for name in names for path in audit.splits[name].paths or []})
    known: dict[Any, Inspected] = {}
    with console.progress("decoding images", sum(len(audit.splits[name]) for name in names)) as bar:
        for path, inspected in zip(files, in_parallel(functools.partial(inspect_file, depth), files, workers), strict=True):
            known[path] = inspected
            bar.advance()
        for name in names:
            split = audit.splits[name]
            if split.paths is not None:
                audit.images[name] = [known[path] for path in split.paths]
                continue
            audit.images[name] = []
            for i in range(len(split)):
                audit.images[name].append(_pixels(split, i))
                bar.advance()
    for name in names:
        bad = [i.problem for i in audit.images[name] if i.problem]
        if bad:
            audit.add(
                "error", "unreadable", [name], f"{len(bad)} of {len(audit.splits[name])} images are unreadable", bad, len(bad)
            )


def _pixels(split: Split, i: int) -> Inspected:
    try:
        return inspect_pixels(split.read(i))
    except DataError as error:
        return Inspected(str(error))


def _check_classes(audit: Audit, names: list[str]) -> None:
    for name in names:
        split = audit.splits[name]
        empty = [label for label, count in (class_counts(split) if split.classes else {}).items() if count == 0]
        if split.task == "multilabel":
            full = [label for label, own in zip(split.classes, split.targets.T, strict=True) if not (own == 0).any()]
            if full:
                message = f"{len(full)} classes without negatives: {', '.join(full[:5])}; their AUROC is undefined there"
                audit.add("warning", "classes", [name], message, count=len(full))
        if empty:
            what = "positives" if split.task == "multilabel" else "samples"
            why = "they cannot be learned" if name == "train" else "their metrics are undefined there"
            message = f"{len(empty)} of {len(split.classes)} classes without {what}: {', '.join(empty[:5])}; {why}"
            audit.add("warning", "classes", [name], message, count=len(empty))


LOSSY = {  # stored mode -> what a conversion to RGB loses
    "RGBA": "an alpha channel, which is dropped",
    "LA": "an alpha channel, which is dropped",
    "PA": "an alpha channel, which is dropped",
    "CMYK": "CMYK colours, converted without their profile",
}


def _check_modes(audit: Audit, names: list[str]) -> None:
    for name in names:
        split = audit.splits[name]
        for mode, what in LOSSY.items():
            ids = [split.ids[i] for i, seen in enumerate(audit.images[name]) if seen.mode == mode]
            if ids:
                audit.add("warning", "modes", [name], f"{len(ids)} images have {what} ({mode})", ids, len(ids))
        modes = Counter(seen.mode for seen in audit.images[name] if seen.mode)
        if 0 < modes.get("L", 0) < sum(modes.values()) and "RGB" in modes:
            audit.add("warning", "modes", [name], f"{modes['L']} grey images among {modes['RGB']} in colour", count=modes["L"])


LONG = 50  # words that hardly fit the 77 tokens of most text towers


def _check_captions(audit: Audit, names: list[str]) -> None:
    """Captions that are cut, or that say nothing about which image they are of."""
    for name in names:
        split = audit.splits[name]
        if split.captions is None:
            continue
        owners: dict[str, list[str]] = defaultdict(list)
        for sample, own in zip(split.ids, split.captions, strict=True):
            for text in dict.fromkeys(own):
                owners[text].append(sample)
        shared = {text: ids for text, ids in owners.items() if len(ids) > 1}
        if shared:
            examples = [f"'{text[:60]}': {', '.join(ids[:4])}" for text, ids in shared.items()]
            message = f"{len(shared)} captions stand for several images; in a contrastive loss these count against each other"
            audit.add("warning", "captions", [name], message, examples, len(shared))
        longer = [
            f"{sample}: {len(text.split())} words"
            for text, ids in owners.items()
            for sample in ids[:1]
            if len(text.split()) > LONG
        ]
        if longer:
            message = f"{len(longer)} captions have more than {LONG} words: what does not fit the text tower is cut off"
            audit.add("warning", "captions", [name], message, longer, len(longer))


def _check_pairs(audit: Audit, names: list[str], data: DataSection) -> None:
    """What two splits must not share: samples, and groups such as a patient."""
    level = "warning" if data.rules.allow_overlap else "error"
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            one, other = audit.splits[first], audit.splits[second]
            shared = shared_samples(one, other)
            if shared:
                message = f"splits '{first}' and '{second}' share {len(shared)} samples; take them out of one"
                audit.add(level, "overlap", [first, second], message, shared, len(shared))
            for column in one.groups.keys() & other.groups.keys():
                both = set(one.groups[column]) & set(other.groups[column])
                if both:
                    images = sum(value in both for value in other.groups[column])
                    cut_part = second.rpartition("/")[2]
                    spec = {"val": data.val, "test": data.test}.get(cut_part)
                    remedy = f"; set data.{cut_part}.group: {column}" if spec is not None and spec.held_out else ""
                    message = (
                        f"group '{column}': {len(both)} of them have images in '{first}' and in '{second}' ({images} images of "
                        f"'{second}'): the model has seen them{remedy}"
                    )
                    known = column in data.held_groups and not data.rules.allow_overlap  # training refuses it
                    audit.add("error" if known else "warning", "groups", [first, second], message, sorted(both), len(both))


def _check_content(audit: Audit, names: list[str], data: DataSection) -> None:
    """Files with the same bytes (pixels, where there is no file) under different ids."""
    places: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for name in names:
        for i, seen in enumerate(audit.images[name]):
            if seen.content:
                places[seen.content].append((name, i))
    repeated = [where for where in places.values() if len(where) > 1]
    for name in names:
        inside = [[i for split, i in where if split == name] for where in repeated]
        inside = [positions for positions in inside if len(positions) > 1]
        targets = audit.splits[name].targets
        torn = [p for p in inside if any(not np.array_equal(targets[i], targets[p[0]]) for i in p[1:])]
        same = [p for p in inside if p not in torn]
        for kind, found in (("the same label", same), ("different labels", torn)):
            if found:
                ids = [" = ".join(audit.splits[name].ids[i] for i in positions) for positions in found]
                message = f"{len(found)} images are there more than once, with {kind}"
                audit.add("warning", "duplicates", [name], message, ids, len(found))
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            already = set(shared_samples(audit.splits[first], audit.splits[second]))
            pairs = []
            for where in repeated:
                left = [audit.splits[first].ids[k] for split, k in where if split == first]
                right = [audit.splits[second].ids[k] for split, k in where if split == second]
                if left and right and left[0] not in already:
                    pairs.append(f"{left[0]} = {right[0]}")
            if pairs:
                level = "warning" if data.rules.allow_overlap else "error"
                message = f"{len(pairs)} images of '{first}' are in '{second}' too, under other ids; take them out of one"
                audit.add(level, "overlap", [first, second], message, pairs, len(pairs))


def _check_near(audit: Audit, names: list[str], distance: int) -> None:
    """Pictures that look the same though their files differ: crops, re-saved copies, neighbouring frames."""
    spots = [(name, i) for name in names for i in range(len(audit.images[name]))]
    seen = [audit.images[name][i] for name, i in spots]
    if len(seen) > MOST:
        audit.add("warning", "near", names, f"near-duplicates were not searched: more than {MOST:,} images", count=0)
        return
    once: set[tuple[str, str]] = set()  # copies of one file are reported as such
    hashes: list[int | None] = []
    for (name, _), image in zip(spots, seen, strict=True):
        hashes.append(None if (name, image.content) in once else image.perceptual)
        once.add((name, image.content))
    pairs, complete = near_pairs(hashes, distance)
    pairs = [(a, b) for a, b in pairs if seen[a].content != seen[b].content]
    by_splits: dict[tuple[str, str], list[tuple[int, int]]] = defaultdict(list)
    for a, b in pairs:
        by_splits[spots[a][0], spots[b][0]].append((a, b))
    for (first, second), found in by_splits.items():
        examples = [f"{audit.splits[first].ids[spots[a][1]]} ~ {audit.splits[second].ids[spots[b][1]]}" for a, b in found]
        where = f"within '{first}'" if first == second else f"between '{first}' and '{second}'"
        count = f"{len(found)}" if complete else f"more than {len(found)}"
        message = f"{count} pairs of images look alike {where} (perceptual hash within {distance} of 64 bits)"
        audit.add("warning", "near", list(dict.fromkeys([first, second])), message, examples, len(found))
        audit.near += [(*spots[a], *spots[b]) for a, b in found[:SHOWN_PAIRS]]
