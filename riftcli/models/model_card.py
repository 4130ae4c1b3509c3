"""The README.md beside saved weights."""

from __future__ import annotations

from typing import Any

_CARD = """---
library_name: timm
tags: [image-classification, timm, riftcli]
---
# {architecture}, finetuned on {data}

Finetuned with riftcli: objective `{objective}`, adapter `{adapter}`, regularizer `{regularizer}`; weights of epoch {epoch}.
The numbers are in `metrics.json` of the run folder, the whole recipe in `recipe.resolved.yaml`.

```python
import timm
{load}
config = timm.data.resolve_model_data_config(model)
transform = timm.data.create_transform(**config, is_training=False)
```
"""

_TIMM = 'model = timm.create_model("local-dir:PATH_TO_THIS_FOLDER", pretrained=True)  # without pretrained=True: random weights'
_OURS = 'import riftcli\nmodel = riftcli.load("PATH_TO_THIS_FOLDER")  # its adapter is no timm layer: timm alone cannot load it'


def model_card(resolved: dict[str, Any], epoch: int, plain_timm: bool = True) -> str:
    """Markdown with how it was made and how to load it."""
    return _CARD.format(
        architecture=resolved["model"]["name"],
        data=resolved["data"].get("name") or resolved["data"]["format"],
        objective=resolved["objective"]["name"],
        adapter=resolved["adapter"]["name"],
        regularizer=resolved["regularizer"]["name"],
        epoch=epoch,
        load=_TIMM if plain_timm else _OURS,
    )
