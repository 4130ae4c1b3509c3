"""Similarity of two models by the second moments of their features: CKA, Procrustes, CCA, effective rank."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from riftcli.evaluation.metrics.two_models import MANY, entry, pair
from riftcli.protocols import Predictions

ENOUGH = 4  # times as many samples as dimensions


@dataclass(frozen=True)
class Cka:
    """Biased linear CKA: `Sim`, the papers' headline (RIFT paper Eq. 2). Streamed over the whole split."""

    higher_is_better: ClassVar[bool] = True
    needs_pretrained: ClassVar[bool] = True

    def compute(self, predictions: Predictions) -> dict[str, Any]:
        """1 for features equal up to rotation, shift and scale."""
        both = pair(predictions)
        return {**entry(both.sums.biased(), len(both)), "estimator": "biased"}

    def with_error(self, predictions: Predictions) -> tuple[dict[str, Any], float | None]:
        """The entry, and the standard error of its value: in one pass over the samples."""
        return _cka_with_error(self, predictions)


@dataclass(frozen=True)
class CkaDebiased:
    """Debiased linear CKA: comparable across split sizes and feature dimensions."""

    higher_is_better: ClassVar[bool] = True
    needs_pretrained: ClassVar[bool] = True
    of_population: ClassVar[bool] = True  # its interval covers the value of any number of images

    def compute(self, predictions: Predictions) -> dict[str, Any]:
        """About 0 for unrelated features, whatever N and D."""
        both = pair(predictions)
        return {**entry(both.sums.debiased(), len(both)), "estimator": "debiased"}

    def with_error(self, predictions: Predictions) -> tuple[dict[str, Any], float | None]:
        """The entry, and the standard error of its value: in one pass over the samples."""
        return _cka_with_error(self, predictions)


def _cka_with_error(metric: Cka | CkaDebiased, predictions: Predictions) -> tuple[dict[str, Any], float | None]:
    from riftcli.functional import influence

    found, both = metric.compute(predictions), pair(predictions)
    return found, influence.cka_error(both) if found["value"] is not None and _enough(both) else None


def _enough(both: Any) -> bool:
    """Are there enough samples for terms of second order to be small? Measured: benchmarks/similarity.py --errors."""
    return len(both) >= ENOUGH * max(both.x.shape[1], both.y.shape[1])


@dataclass(frozen=True)
class Procrustes:
    """Procrustes distance of the centred features of norm 1: 0 for equal up to rotation, sqrt 2 for unrelated ones."""

    higher_is_better: ClassVar[bool] = False
    needs_pretrained: ClassVar[bool] = True

    def compute(self, predictions: Predictions) -> dict[str, Any]:
        """Not squared (Ding et al. 2021 square it)."""
        from riftcli.functional import alignment

        both = pair(predictions)
        return entry(alignment.procrustes_of(both)[0], len(both))

    def with_error(self, predictions: Predictions) -> tuple[dict[str, Any], float | None]:
        """The entry, and the standard error of its value: in one pass over the samples."""
        from riftcli.functional import alignment

        both = pair(predictions)
        value, error = alignment.procrustes_of(both, with_error=True)
        return entry(value, len(both)), error


def _of_correlations(predictions: Predictions, variance: float | None = None) -> dict[str, Any]:
    from riftcli.functional import alignment

    both = pair(predictions)
    found = alignment.correlations_of(both, variance)
    return entry(None, len(both), _why_not(both)) if found is None else entry(float(found.mean()), len(both))


def _why_not(both: Any) -> str:
    """Why there are no canonical correlations."""
    if both.constant:
        return "the features are constant"
    return "not more samples than feature dimensions: any two sets of features then correlate perfectly"


@dataclass(frozen=True)
class Cca:
    """Mean canonical correlation: 1 for features equal up to any invertible linear map."""

    higher_is_better: ClassVar[bool] = True
    needs_pretrained: ClassVar[bool] = True

    def compute(self, predictions: Predictions) -> dict[str, Any]:
        """Over all directions that are not constant; needs more samples than dimensions."""
        return _of_correlations(predictions)


@dataclass(frozen=True)
class Svcca:
    """Mean canonical correlation of the directions that hold 99 % of each side's variance (Raghu et al. 2017)."""

    higher_is_better: ClassVar[bool] = True
    needs_pretrained: ClassVar[bool] = True
    variance: ClassVar[float] = 0.99

    def compute(self, predictions: Predictions) -> dict[str, Any]:
        """Needs more samples than such directions."""
        return {**_of_correlations(predictions, self.variance), "variance": self.variance}

    def spread_of_halves(self, predictions: Predictions, draws: int, seed: int) -> float | None:
        """Standard error from random halves, whose moments are put together; None for few samples."""
        from riftcli.functional import alignment

        return alignment.svcca_error(pair(predictions), self.variance, draws, seed)


@dataclass(frozen=True)
class EffectiveRank:
    """Participation ratio of the spectrum of the features, relative to the reference's: below 1, directions were lost."""

    higher_is_better: ClassVar[bool] = True
    needs_pretrained: ClassVar[bool] = True

    def compute(self, predictions: Predictions) -> dict[str, Any]:
        """`rank` and `reference_rank` are the two numbers of directions, between 1 and D, in these images; `debiased` and
        `reference_debiased` estimate those in any number of them.
        """
        from riftcli.functional import covariance

        both, some = pair(predictions), pair(predictions, MANY)
        if len(both) < 2 or both.sums.is_constant():
            return entry(None, len(both))
        ranks = [covariance.participation_ratio(both.moments[i]) for i in (0, 2)]
        value = ranks[1] / ranks[0] if ranks[0] > 0 else None
        debiased = [covariance.effective_rank_debiased(rows.to(some.device).double()) for rows in (some.x, some.y)]
        beside = {"debiased": debiased[1], "reference_debiased": debiased[0]}
        return {**entry(value, len(both)), "rank": ranks[1], "reference_rank": ranks[0], **beside}

    def with_error(self, predictions: Predictions) -> tuple[dict[str, Any], float | None]:
        """The entry, and the standard error of its value: in one pass over the samples."""
        from riftcli.functional import influence

        found, both = self.compute(predictions), pair(predictions)
        return found, influence.rank_ratio_error(both) if found["value"] is not None and _enough(both) else None
