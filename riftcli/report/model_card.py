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
model = timm.create_model("local-dir:PATH_TO_THIS_FOLDER", pretrained=True)  # without pretrained=True: random weights
config = timm.data.resolve_model_data_config(model)
transform = timm.data.create_transform(**config, is_training=False)
```
"""


def model_card(resolved: dict[str, Any], epoch: int) -> str:
    """Markdown with how it was made and how to load it."""
    return _CARD.format(
        architecture=resolved["model"]["name"],
        data=resolved["data"].get("name") or resolved["data"]["format"],
        objective=resolved["objective"]["name"],
        adapter=resolved["adapter"]["name"],
        regularizer=resolved["regularizer"]["name"],
        epoch=epoch,
    )
