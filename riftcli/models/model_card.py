"""The README.md beside saved weights."""

from __future__ import annotations

from typing import Any

from riftcli.escaping import markdown

_CARD = """---
library_name: {library}
tags: [image-classification, {library}, riftcli]
---
# {architecture}, finetuned on {data}

Finetuned with riftcli: objective `{objective}`, adapter `{adapter}`, regularizer `{regularizer}`; weights of epoch {epoch}.
The numbers are in `metrics.json` of the run folder, the whole recipe in `recipe.resolved.yaml`.

```python
{load}
```
"""

_TIMM = """import timm
model = timm.create_model("local-dir:PATH_TO_THIS_FOLDER", pretrained=True)  # without pretrained=True: random weights
config = timm.data.resolve_model_data_config(model)
transform = timm.data.create_transform(**config, is_training=False)"""
_OPEN_CLIP = """import open_clip
model, _, transform = open_clip.create_model_and_transforms("local-dir:PATH_TO_THIS_FOLDER")
tokenizer = open_clip.get_tokenizer("local-dir:PATH_TO_THIS_FOLDER")
# the classifier is in head.safetensors; riftcli.load("PATH_TO_THIS_FOLDER") puts it on the image tower"""
_OURS = """import riftcli
model = riftcli.load("PATH_TO_THIS_FOLDER")  # its adapter is no {library} layer: {library} alone cannot load it"""


def model_card(resolved: dict[str, Any], epoch: int, plain: bool = True, two_towers: bool = False) -> str:
    """Markdown with how it was made and how to load it. plain: the library that its backbone is of can load it."""
    library = "open_clip" if two_towers else "timm"
    load = (_OPEN_CLIP if two_towers else _TIMM) if plain else _OURS.format(library=library)
    return _CARD.format(
        architecture=markdown(resolved["model"]["name"]),
        data=markdown(resolved["data"].get("name") or resolved["data"]["format"]),
        objective=resolved["objective"]["name"],
        adapter=resolved["adapter"]["name"],
        regularizer=resolved["regularizer"]["name"],
        epoch=epoch,
        library=library,
        load=load,
    )
