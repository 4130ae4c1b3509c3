"""Similarity of two models by the second moments of their features: CKA, Procrustes, CCA, effective rank."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from riftcli.evaluation.metrics.two_models import MANY, entry, pair
from riftcli.protocols import Predictions


def _with_error(metric: Any, value: Any, predictions: Predictions) -> tuple[dict[str, Any], float | None]:
    """The entry of a metric, and its standard error from what every sample adds to it; value: the metric as a function of
    moments.
    """
    from riftcli.functional import influence

    found = metric.compute(predictions)
    return found, None if found["value"] is None else influence.error_of_moments(value, *pair(predictions))


@dataclass(frozen=True)
class Cka:
    """Biased linear CKA: `Sim`, the papers' headline (RIFT paper Eq. 2). Streamed over the whole split."""

    higher_is_better: ClassVar[bool] = True
    needs_pretrained: ClassVar[bool] = True

    def compute(self, predictions: Predictions) -> dict[str, Any]:
        """1 for features equal up to rotation, shift and scale."""
        from riftcli.functional import cka

        before, after = pair(predictions)
        return {**entry(cka.cka(before, after), len(before)), "estimator": "biased"}

    def with_error(self, predictions: Predictions) -> tuple[dict[str, Any], float | None]:
        """The entry, and the standard error of its value: in one pass over the samples."""
        from riftcli.functional import influence

        return _with_error(self, influence.cka_of_moments, predictions)


@dataclass(frozen=True)
class CkaDebiased:
    """Debiased linear CKA: comparable across split sizes and feature dimensions."""

    higher_is_better: ClassVar[bool] = True
    needs_pretrained: ClassVar[bool] = True
    of_population: ClassVar[bool] = True  # its interval covers the value of any number of images

    def compute(self, predictions: Predictions) -> dict[str, Any]:
        """About 0 for unrelated features, whatever N and D."""
        from riftcli.functional import cka

        before, after = pair(predictions)
        return {**entry(cka.cka(before, after, debiased=True), len(before)), "estimator": "debiased"}

    def with_error(self, predictions: Predictions) -> tuple[dict[str, Any], float | None]:
        """The entry, and the standard error of its value: in one pass over the samples."""
        from riftcli.functional import influence

        return _with_error(self, influence.cka_of_moments, predictions)


@dataclass(frozen=True)
class Procrustes:
    """Procrustes distance of the centred features of norm 1: 0 for equal up to rotation, sqrt 2 for unrelated ones."""

    higher_is_better: ClassVar[bool] = False
    needs_pretrained: ClassVar[bool] = True

    def compute(self, predictions: Predictions) -> dict[str, Any]:
        """Not squared (Ding et al. 2021 square it)."""
        from riftcli.functional import alignment

        before, after = pair(predictions)
        return entry(alignment.procrustes_distance(before, after), len(before))

    def with_error(self, predictions: Predictions) -> tuple[dict[str, Any], float | None]:
        """The entry, and the standard error of its value: in one pass over the samples."""
        from riftcli.functional import influence

        return _with_error(self, influence.procrustes_of_moments, predictions)


def _why_not(before: Any, after: Any) -> str:
    """Why there are no canonical correlations."""
    from riftcli.functional.rounding import is_constant

    if is_constant(before) or is_constant(after):
        return "the features are constant"
    return "not more samples than feature dimensions: any two sets of features then correlate perfectly"


@dataclass(frozen=True)
class Cca:
    """Mean canonical correlation: 1 for features equal up to any invertible linear map."""

    higher_is_better: ClassVar[bool] = True
    needs_pretrained: ClassVar[bool] = True

    def compute(self, predictions: Predictions) -> dict[str, Any]:
        """Over all directions that are not constant; needs more samples than dimensions."""
        from riftcli.functional import alignment

        before, after = pair(predictions)
        found = alignment.canonical_correlations(before, after)
        return entry(None if found is None else float(found.mean()), len(before), _why_not(before, after))


@dataclass(frozen=True)
class Svcca:
    """Mean canonical correlation of the directions that hold 99 % of each side's variance (Raghu et al. 2017)."""

    higher_is_better: ClassVar[bool] = True
    needs_pretrained: ClassVar[bool] = True
    variance: ClassVar[float] = 0.99

    def compute(self, predictions: Predictions) -> dict[str, Any]:
        """Needs more samples than such directions."""
        from riftcli.functional import alignment

        before, after = pair(predictions)
        found = alignment.canonical_correlations(before, after, self.variance)
        value = None if found is None else float(found.mean())
        return {**entry(value, len(before), _why_not(before, after)), "variance": self.variance}

    def spread_of_halves(self, predictions: Predictions, draws: int, seed: int) -> float | None:
        """Standard error from random halves, whose moments are put together; None for few samples."""
        from riftcli.functional import alignment

        return alignment.svcca_error(*pair(predictions), self.variance, draws, seed)


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
        from riftcli.functional.rounding import is_constant
        from riftcli.functional.thinning import thinned

        before, after = pair(predictions)
        if len(before) < 2 or is_constant(before) or is_constant(after):
            return entry(None, len(before))
        ranks = [covariance.participation_ratio(features) for features in (before, after)]
        value = ranks[1] / ranks[0] if ranks[0] > 0 else None
        debiased = [covariance.effective_rank_debiased(f[thinned(len(f), MANY)].double()) for f in (before, after)]
        beside = {"debiased": debiased[1], "reference_debiased": debiased[0]}
        return {**entry(value, len(before)), "rank": ranks[1], "reference_rank": ranks[0], **beside}

    def with_error(self, predictions: Predictions) -> tuple[dict[str, Any], float | None]:
        """The entry, and the standard error of its value: in one pass over the samples."""
        from riftcli.functional import influence

        return _with_error(self, influence.rank_ratio_of_moments, predictions)
