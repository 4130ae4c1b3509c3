"""Similarity of two models on a plane of two principal components (RIFT paper Fig. 4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from riftcli.evaluation.metrics.two_models import entry, pair
from riftcli.protocols import Predictions

MAP_MANY = 2000  # samples of the densities


@dataclass(frozen=True)
class CentreDistance:
    """Distance of the two clouds' centres on the map of two principal components, in units of the reference's spread."""

    higher_is_better: ClassVar[bool] = False
    needs_pretrained: ClassVar[bool] = True

    def compute(self, predictions: Predictions) -> dict[str, Any]:
        """RIFT paper Fig. 4; `raw` is in units of the features."""
        from riftcli.functional import overlap
        from riftcli.functional.rounding import is_constant

        both = pair(predictions)
        before, after = both.x, both.y
        if before.shape[1] != after.shape[1]:
            return entry(None, len(before), "the two models have different feature dimensions: there is no common map")
        if is_constant(before):
            return entry(None, len(before), "the features of the reference are constant: there is no spread to compare with")
        raw, relative = overlap.centre_distance(overlap.pca_map(before, after))
        return {**entry(relative, len(before)), "raw": raw}


@dataclass(frozen=True)
class Overlap:
    """Overlap of the two clouds' densities on the map of two principal components: 0 apart, 1 the same."""

    higher_is_better: ClassVar[bool] = True
    needs_pretrained: ClassVar[bool] = True
    at_most: ClassVar[int] = MAP_MANY

    def compute(self, predictions: Predictions) -> dict[str, Any]:
        """RIFT paper Fig. 4; `aligned` is after the best rotation, which RIFT permits and a map would count as a loss."""
        from riftcli.functional import overlap
        from riftcli.functional.rounding import is_constant

        both = pair(predictions, self.at_most)
        before, after = both.x, both.y
        if before.shape[1] != after.shape[1]:
            return entry(None, len(before), "the two models have different feature dimensions: there is no common map")
        if len(before) < 3 or is_constant(before) or is_constant(after):
            return entry(None, len(before))
        value, aligned = (overlap.density_overlap(overlap.pca_map(before, after, how)) for how in (False, True))
        return {**entry(value, len(before)), "aligned": aligned}
