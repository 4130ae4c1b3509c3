"""Maps between two models' features: fitted, and written where commands and notebooks find them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from riftcli import dist
from riftcli.console import Console
from riftcli.evaluation.candidates import Candidate
from riftcli.evaluation.data_sets import EvalData
from riftcli.evaluation.encoder import Encoder
from riftcli.files import write_json
from riftcli.models.feature_map import FILE
from riftcli.runs.provenance import now, provenance
from riftcli.runs.result_table import ResultTable
from riftcli.training.align import align
from riftcli.training.feature_maps import MapOptions


def align_models(
    models: Sequence[Candidate], source: EvalData, split: str, options: MapOptions, device: str, place: Path
) -> ResultTable | None:
    """Fit a map from the second model to the first and write PLACE/map.safetensors with its table and its run.json; None on
    other ranks.
    """
    encoder = Encoder.of_recipe(models[1].recipe, dist.init(device), Console(quiet=not dist.is_main()))
    found, table = align(models[0], models[1], source, split, options, encoder)
    main = dist.is_main()
    dist.close()
    if not main:
        return None
    found.save(place / FILE)
    table.write(place)
    write_json(place / "run.json", {"schema": "rift.run/1", "status": "completed", **provenance(table.env), "finished": now()})
    return table
