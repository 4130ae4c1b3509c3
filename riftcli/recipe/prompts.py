"""Classes in words: the texts that stand for each class, for training on prompts and for zero-shot heads."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from riftcli.assets import ASSETS
from riftcli.errors import DataError, EnvironmentError, UsageError, did_you_mean
from riftcli.files import MEGABYTE, read_text

IMAGENET = "imagenet"  # class names by wnid, from open_clip
OPEN_CLIP_TEMPLATES = {"openai80": "OPENAI_IMAGENET_TEMPLATES", "openai7": "SIMPLE_IMAGENET_TEMPLATES"}
NAMES = 16 * MEGABYTE  # of a file of class names
_WNID = re.compile(r"n[0-9]{8}")


def class_texts(
    classes: Sequence[str], templates: str | Sequence[str], names: str | Sequence[str] | Mapping[str, str] | None, where: str
) -> list[list[str]]:
    """The texts of each class, one per template; classes and templates in their order.

    templates: a shipped set by name, or templates with {} for the name ({an}: the name behind its article). names: see
    `class_names`. where: the section that a message names. Raises UsageError and DataError.
    """
    chosen = _templates(templates, where)
    return [[_filled(template, name) for template in chosen] for name in class_names(classes, names, where)]


def class_names(classes: Sequence[str], names: str | Sequence[str] | Mapping[str, str] | None, where: str) -> list[str]:
    """A name in words for every class.

    names: null (the data source's own, with spaces for underscores and slashes; those of ImageNet for wnids), a shipped set by
    name, a file with a name a line, a list in the order of the classes, or a mapping from class to name, complete or not.
    """
    if names is None:
        names = IMAGENET if classes and all(_WNID.fullmatch(name) for name in classes) else {}
    corrections = isinstance(names, str) and names in shipped()["corrections"]  # of a class or two: a part of the data has none
    if isinstance(names, str):
        names = _named(names, where)
    if isinstance(names, Mapping):
        unknown = [key for key in names if key not in classes]
        if unknown and len(unknown) == len(names) and not corrections:
            raise DataError(
                f"{where}.class_names: none of its {len(names)} classes is in the data (e.g. '{unknown[0]}'); the data has "
                f"{', '.join(classes[:3])}, ..."
            )
        found = [names.get(name, name.replace("_", " ").replace("/", " ")) for name in classes]
    else:
        if len(names) != len(classes):
            raise DataError(f"{where}.class_names: {len(names)} names for {len(classes)} classes; give one per class, in order")
        found = list(names)
    nameless = [label for label, name in zip(classes, found, strict=True) if not name.strip()]
    if nameless:
        raise DataError(f"{where}.class_names: class '{nameless[0]}' has no name; say what it is in words")
    return found


@cache
def shipped() -> dict[str, Any]:
    """assets/prompts.yaml: {templates: {set: [...]}, class_names and corrections: {set: {class: name}}}."""
    return yaml.safe_load((ASSETS / "prompts.yaml").read_text(encoding="utf-8"))


def template_sets() -> list[str]:
    """Names of the template sets that a recipe may use."""
    return [*OPEN_CLIP_TEMPLATES, *shipped()["templates"]]


def _templates(templates: str | Sequence[str], where: str) -> list[str]:
    if isinstance(templates, str):
        if templates in OPEN_CLIP_TEMPLATES:
            return [template("{}") for template in getattr(_open_clip(), OPEN_CLIP_TEMPLATES[templates])]
        if templates not in shipped()["templates"]:
            known = template_sets()
            raise UsageError(
                f"{where}.templates '{templates}': no such set{did_you_mean(templates, known)}; one of: {', '.join(known)}; or "
                "give a list, e.g. ['a photo of a {}.']"
            )
        return shipped()["templates"][templates]
    return list(templates)


def check_templates(templates: str | Sequence[str]) -> None:
    """Raise ValueError for a template without a place for the class, or for none at all."""
    if isinstance(templates, str):
        if templates not in template_sets():
            close = did_you_mean(templates, template_sets())
            raise ValueError(f"unknown set '{templates}'{close}; one of: {', '.join(template_sets())}; or a list of templates")
        return
    if not templates:
        raise ValueError("an empty list; give at least one, e.g. ['a photo of a {}.']")
    for template in templates:
        if "{}" not in template and "{an}" not in template:
            raise ValueError(f"'{template}' has no place for the class name: write {{}} where it belongs")


def _filled(template: str, name: str) -> str:
    article = "an" if name[:1].lower() in "aeiou" else "a"
    return template.replace("{an}", f"{article} {name}").replace("{}", name)


def _named(name: str, where: str) -> Mapping[str, str] | Sequence[str]:
    if name == IMAGENET:
        return dict(zip(imagenet_wnids(), _open_clip().IMAGENET_CLASSNAMES, strict=True))
    for kind in ("class_names", "corrections"):
        if name in shipped()[kind]:
            return shipped()[kind][name]
    path = Path(name).expanduser()
    if path.is_file():
        try:
            return [line.strip() for line in read_text(path, NAMES).splitlines() if line.strip()]
        except (OSError, ValueError) as error:
            raise DataError(f"{where}.class_names {name}: not a text file with a name a line ({error})") from error
    known = [IMAGENET, *shipped()["class_names"], *shipped()["corrections"]]
    raise UsageError(
        f"{where}.class_names '{name}': neither a shipped set{did_you_mean(name, known)} ({', '.join(known)}) nor a file with a "
        "name a line"
    )


@cache
def imagenet_wnids() -> list[str]:
    """The 1,000 wnids of ImageNet-1K in the order of its class indices, as timm lists them."""
    from timm.data import ImageNetInfo

    return list(ImageNetInfo("imagenet-1k").label_names())


def _open_clip() -> Any:
    try:
        import open_clip
    except ImportError as error:
        raise EnvironmentError(
            "prompts of ImageNet come with open_clip, which is not installed: pip install 'riftcli[clip]'"
        ) from error
    return open_clip
