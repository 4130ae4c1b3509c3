"""Similarity of two models by how they see all pairs of images: kernels, dissimilarities, neighbours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from riftcli.evaluation.metrics.two_models import MANY, entry, pair
from riftcli.protocols import Predictions


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

        both = pair(predictions, self.at_most)
        value, error = kernels.rbf_cka_with_error(both, self.bandwidth)
        return {**entry(value, len(both)), "bandwidth": self.bandwidth}, error


def _rsa(predictions: Predictions, **how: Any) -> tuple[dict[str, Any], float | None]:
    """An entry of `functional.rsa`, and its standard error."""
    from riftcli.functional import rsa

    both = pair(predictions, MANY)
    value, error = rsa.rsa_with_error(both, **how)
    return entry(value, len(both)), error


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
        return _rsa(predictions)


@dataclass(frozen=True)
class RsaCentred:
    """As rsa, of centred features: otherwise what all images have in common dominates the cosine."""

    higher_is_better: ClassVar[bool] = True
    needs_pretrained: ClassVar[bool] = True
    at_most: ClassVar[int] = MANY

    def compute(self, predictions: Predictions) -> dict[str, Any]:
        """Over all pairs of samples."""
        return _rsa(predictions, centred=True)[0]  # its error is not known: the centring moves with the samples


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
        return _rsa(predictions, rank=True)


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
        return _rsa(predictions, distance="euclid")


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

        both = pair(predictions, self.at_most)
        found = entry(neighbours.mutual_knn_of(both, self.k), len(both))
        return {**found, "k": self.k, "chance": min(1.0, self.k / max(1, len(both) - 1))}

    def spread_of_halves(self, predictions: Predictions, draws: int, seed: int) -> float | None:
        """Standard error from random halves, whose neighbours are found among those of all samples; None for few samples."""
        from riftcli.functional import neighbours

        return neighbours.mutual_knn_error(pair(predictions, self.at_most), self.k, draws, seed)
