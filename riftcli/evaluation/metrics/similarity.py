"""How close the features still are to another model's (the pretrained one's, unless told otherwise), on the same images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from riftcli.protocols import Predictions

MANY = 5000  # samples of the measures that need an N x N table; more are thinned out, evenly
MAP_MANY = 2000  # samples of the map's densities


def _pair(predictions: Predictions, at_most: int | None = None) -> tuple[Any, Any]:
    """(reference, features), both (n, D); of more than `at_most` samples every so-many-th."""
    from riftcli.functional.thinning import thinned

    assert predictions.pretrained is not None, "a similarity needs the features of two models"
    kept = thinned(len(predictions.features), at_most)
    return predictions.pretrained[kept], predictions.features[kept]


def _error(value: Any, predictions: Predictions) -> float | None:
    """Standard error of a value of moments, from what every sample adds to it."""
    from riftcli.functional import influence

    return influence.error_of_moments(value, *_pair(predictions))


def _entry(
    value: float | None, samples: int, why: str = "the features are constant or there are too few samples"
) -> dict[str, Any]:
    return {"value": value, "reference": "pretrained", "samples": samples} | ({"reason": why} if value is None else {})


@dataclass(frozen=True)
class Cka:
    """Biased linear CKA: `Sim`, the papers' headline (RIFT paper Eq. 2). Streamed over the whole split."""

    higher_is_better: ClassVar[bool] = True
    needs_pretrained: ClassVar[bool] = True

    def compute(self, predictions: Predictions) -> dict[str, Any]:
        """1 for features equal up to rotation, shift and scale."""
        from riftcli.functional import cka

        before, after = _pair(predictions)
        return {**_entry(cka.cka(before, after), len(before)), "estimator": "biased"}

    def with_error(self, predictions: Predictions) -> tuple[dict[str, Any], float | None]:
        """The entry, and the standard error of its value: in one pass over the samples."""
        from riftcli.functional import influence

        return self.compute(predictions), _error(influence.cka_of_moments, predictions)


@dataclass(frozen=True)
class CkaDebiased:
    """Debiased linear CKA: comparable across split sizes and feature dimensions."""

    higher_is_better: ClassVar[bool] = True
    needs_pretrained: ClassVar[bool] = True
    of_population: ClassVar[bool] = True  # its interval covers the value of any number of images

    def compute(self, predictions: Predictions) -> dict[str, Any]:
        """About 0 for unrelated features, whatever N and D."""
        from riftcli.functional import cka

        before, after = _pair(predictions)
        return {**_entry(cka.cka(before, after, debiased=True), len(before)), "estimator": "debiased"}

    def with_error(self, predictions: Predictions) -> tuple[dict[str, Any], float | None]:
        """The entry, and the standard error of its value: in one pass over the samples."""
        from riftcli.functional import influence

        return self.compute(predictions), _error(influence.cka_of_moments, predictions)


@dataclass(frozen=True)
class CkaRbf:
    """CKA with a Gaussian kernel of 0.8 times the median distance (Kornblith et al. 2019)."""

    higher_is_better: ClassVar[bool] = True
    needs_pretrained: ClassVar[bool] = True
    at_most: ClassVar[int] = MANY
    bandwidth: ClassVar[float] = 0.8

    def compute(self, predictions: Predictions) -> dict[str, Any]:
        """1 for features equal up to rotation, shift and scale; weighs near pairs more than linear CKA."""
        return self.with_error(predictions)[0]

    def with_error(self, predictions: Predictions) -> tuple[dict[str, Any], float | None]:
        """The entry, and the standard error of its value: in one pass over the pairs."""
        from riftcli.functional import kernels

        before, after = _pair(predictions, self.at_most)
        value, error = kernels.rbf_cka_with_error(before, after, self.bandwidth)
        return {**_entry(value, len(before)), "bandwidth": self.bandwidth}, error


@dataclass(frozen=True)
class Rsa:
    """Pearson correlation of cosine dissimilarities (DiVE App. D); features are not centred."""

    higher_is_better: ClassVar[bool] = True
    needs_pretrained: ClassVar[bool] = True
    of_population: ClassVar[bool] = True  # its interval covers the value of any number of images
    at_most: ClassVar[int] = MANY

    def compute(self, predictions: Predictions) -> dict[str, Any]:
        """Over all pairs of samples."""
        return self.with_error(predictions)[0]

    def with_error(self, predictions: Predictions) -> tuple[dict[str, Any], float | None]:
        """The entry, and the standard error of its value: in one pass over the pairs."""
        from riftcli.functional import rsa

        before, after = _pair(predictions, self.at_most)
        value, error = rsa.rsa_with_error(before, after)
        return _entry(value, len(before)), error


@dataclass(frozen=True)
class RsaCentred:
    """As rsa, of centred features: otherwise what all images have in common dominates the cosine."""

    higher_is_better: ClassVar[bool] = True
    needs_pretrained: ClassVar[bool] = True
    at_most: ClassVar[int] = MANY

    def compute(self, predictions: Predictions) -> dict[str, Any]:
        """Over all pairs of samples."""
        from riftcli.functional import rsa

        before, after = _pair(predictions, self.at_most)
        return _entry(rsa.rsa(before, after, centred=True), len(before))


@dataclass(frozen=True)
class RsaSpearman:
    """Spearman correlation of cosine dissimilarities."""

    higher_is_better: ClassVar[bool] = True
    needs_pretrained: ClassVar[bool] = True
    of_population: ClassVar[bool] = True  # its interval covers the value of any number of images
    at_most: ClassVar[int] = MANY

    def compute(self, predictions: Predictions) -> dict[str, Any]:
        """Over all pairs of samples."""
        return self.with_error(predictions)[0]

    def with_error(self, predictions: Predictions) -> tuple[dict[str, Any], float | None]:
        """The entry, and the standard error of its value: in one pass over the pairs."""
        from riftcli.functional import rsa

        before, after = _pair(predictions, self.at_most)
        value, error = rsa.rsa_with_error(before, after, rank=True)
        return _entry(value, len(before)), error


@dataclass(frozen=True)
class RsaEuclid:
    """Pearson correlation of Euclidean distances."""

    higher_is_better: ClassVar[bool] = True
    needs_pretrained: ClassVar[bool] = True
    at_most: ClassVar[int] = MANY

    def compute(self, predictions: Predictions) -> dict[str, Any]:
        """Over all pairs of samples."""
        return self.with_error(predictions)[0]

    def with_error(self, predictions: Predictions) -> tuple[dict[str, Any], float | None]:
        """The entry, and the standard error of its value: in one pass over the pairs."""
        from riftcli.functional import rsa

        before, after = _pair(predictions, self.at_most)
        value, error = rsa.rsa_with_error(before, after, distance="euclid")
        return _entry(value, len(before)), error


@dataclass(frozen=True)
class Procrustes:
    """Procrustes distance of the centred features of norm 1: 0 for equal up to rotation, sqrt 2 for unrelated ones."""

    higher_is_better: ClassVar[bool] = False
    needs_pretrained: ClassVar[bool] = True

    def compute(self, predictions: Predictions) -> dict[str, Any]:
        """Not squared (Ding et al. 2021 square it)."""
        from riftcli.functional import alignment

        before, after = _pair(predictions)
        return _entry(alignment.procrustes_distance(before, after), len(before))

    def with_error(self, predictions: Predictions) -> tuple[dict[str, Any], float | None]:
        """The entry, and the standard error of its value: in one pass over the samples."""
        from riftcli.functional import influence

        return self.compute(predictions), _error(influence.procrustes_of_moments, predictions)


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

        before, after = _pair(predictions)
        found = alignment.canonical_correlations(before, after)
        return _entry(None if found is None else float(found.mean()), len(before), _why_not(before, after))


@dataclass(frozen=True)
class Svcca:
    """Mean canonical correlation of the directions that hold 99 % of each side's variance (Raghu et al. 2017)."""

    higher_is_better: ClassVar[bool] = True
    needs_pretrained: ClassVar[bool] = True
    variance: ClassVar[float] = 0.99

    def compute(self, predictions: Predictions) -> dict[str, Any]:
        """Needs more samples than such directions."""
        from riftcli.functional import alignment

        before, after = _pair(predictions)
        found = alignment.canonical_correlations(before, after, self.variance)
        value = None if found is None else float(found.mean())
        return {**_entry(value, len(before), _why_not(before, after)), "variance": self.variance}

    def with_error(self, predictions: Predictions) -> tuple[dict[str, Any], float | None]:
        """The entry, and the standard error of its value: in one pass over the samples."""
        from riftcli.functional import influence

        def value(xx: Any, xy: Any, yy: Any) -> Any:
            return influence.correlations_of_moments(xx, xy, yy, self.variance).mean()

        return self.compute(predictions), _error(value, predictions)


@dataclass(frozen=True)
class MutualKnn:
    """Share of the 10 nearest neighbours (cosine) that both models name (Huh et al. 2024)."""

    higher_is_better: ClassVar[bool] = True
    needs_pretrained: ClassVar[bool] = True
    at_most: ClassVar[int] = MANY
    k: ClassVar[int] = 10

    def compute(self, predictions: Predictions) -> dict[str, Any]:
        """`chance` is the value of unrelated features."""
        from riftcli.functional import neighbours

        before, after = _pair(predictions, self.at_most)
        entry = _entry(neighbours.mutual_knn(before, after, self.k), len(before))
        return {**entry, "k": self.k, "chance": min(1.0, self.k / max(1, len(before) - 1))}

    def with_error(self, predictions: Predictions) -> tuple[dict[str, Any], float | None]:
        """The entry, and the standard error of its value: of halves, whose neighbours are found among those of all samples."""
        from riftcli.functional import neighbours

        return self.compute(predictions), neighbours.mutual_knn_error(*_pair(predictions, self.at_most), self.k)


@dataclass(frozen=True)
class CentreDistance:
    """Distance of the two clouds' centres on the map of two principal components, in units of the reference's spread."""

    higher_is_better: ClassVar[bool] = False
    needs_pretrained: ClassVar[bool] = True

    def compute(self, predictions: Predictions) -> dict[str, Any]:
        """RIFT paper Fig. 4; `raw` is in units of the features."""
        from riftcli.functional import overlap
        from riftcli.functional.rounding import is_constant

        before, after = _pair(predictions)
        if before.shape[1] != after.shape[1]:
            return _entry(None, len(before), "the two models have different feature dimensions: there is no common map")
        if is_constant(before):
            return _entry(None, len(before), "the features of the reference are constant: there is no spread to compare with")
        raw, relative = overlap.centre_distance(overlap.pca_map(before, after))
        return {**_entry(relative, len(before)), "raw": raw}


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

        before, after = _pair(predictions, self.at_most)
        if before.shape[1] != after.shape[1]:
            return _entry(None, len(before), "the two models have different feature dimensions: there is no common map")
        if len(before) < 3 or is_constant(before) or is_constant(after):
            return _entry(None, len(before))
        value, aligned = (overlap.density_overlap(overlap.pca_map(before, after, how)) for how in (False, True))
        return {**_entry(value, len(before)), "aligned": aligned}


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

        before, after = _pair(predictions)
        if len(before) < 2 or is_constant(before) or is_constant(after):
            return _entry(None, len(before))
        ranks = [covariance.participation_ratio(features) for features in (before, after)]
        value = ranks[1] / ranks[0] if ranks[0] > 0 else None
        debiased = [covariance.effective_rank_debiased(f[thinned(len(f), MANY)].double()) for f in (before, after)]
        beside = {"debiased": debiased[1], "reference_debiased": debiased[0]}
        return {**_entry(value, len(before)), "rank": ranks[1], "reference_rank": ranks[0], **beside}

    def with_error(self, predictions: Predictions) -> tuple[dict[str, Any], float | None]:
        """The entry, and the standard error of its value: in one pass over the samples."""
        from riftcli.functional import influence

        return self.compute(predictions), _error(influence.rank_ratio_of_moments, predictions)
