"""The linear probe: what it finds, and when there is nothing to say."""

from __future__ import annotations

import pytest
import torch
from sklearn.linear_model import RidgeClassifier
from sklearn.preprocessing import StandardScaler

from riftcli.functional.probe import ALPHAS, probe_accuracy


def clusters(n: int, seed: int, spread: float = 0.5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 3
    centres = torch.eye(3).repeat(1, 4)
    return centres[labels] + spread * torch.randn(n, 12, generator=generator), labels


def test_it_reads_what_is_there_and_guesses_what_is_not():
    bank, labels = clusters(90, 0)
    queries, targets = clusters(60, 1)
    assert probe_accuracy(bank, labels, queries, targets) > 0.95
    assert probe_accuracy(bank, labels) > 0.95
    noise = torch.randn(90, 12, generator=torch.Generator().manual_seed(2))
    assert probe_accuracy(noise, labels, noise[torch.randperm(90)], labels) < 0.6
    assert probe_accuracy(torch.zeros(90, 12), labels, torch.zeros(60, 12), targets) == pytest.approx(1 / 3, abs=0.01)


def test_it_is_a_ridge_classifier_whose_penalty_the_bank_chooses():
    bank, labels = clusters(60, 3, spread=1.2)
    queries, targets = clusters(200, 4, spread=1.2)
    scaler = StandardScaler().fit(bank.double())
    scores = [
        RidgeClassifier(alpha=float(alpha)).fit(scaler.transform(bank), labels).score(scaler.transform(queries), targets)
        for alpha in ALPHAS
    ]
    assert min(scores) <= probe_accuracy(bank, labels, queries, targets) <= max(scores)


def test_where_nothing_can_be_fitted_it_says_so():
    rows, _ = clusters(10, 0)
    assert probe_accuracy(rows, torch.zeros(10, dtype=torch.long)) is None
    assert probe_accuracy(rows, torch.arange(10) % 5) is None, "two of each class do not make five folds"
