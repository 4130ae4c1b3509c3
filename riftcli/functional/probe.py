"""A linear probe on frozen features: what can still be read off them."""

from __future__ import annotations

import torch

ALPHAS = 10.0 ** torch.arange(-1, 6, 0.5, dtype=torch.float64)  # of the ridge, for standardised features
FOLDS = 5


def probe_accuracy(
    bank: torch.Tensor,
    labels: torch.Tensor,
    queries: torch.Tensor | None = None,
    targets: torch.Tensor | None = None,
) -> float | None:
    """Accuracy of a ridge classifier fitted on the bank (N, D); its penalty is chosen by leave-one-out on the bank alone.

    Without queries, the bank is predicted in stratified folds. None where a class has too few samples for that.
    """
    from sklearn.linear_model import RidgeClassifierCV
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), RidgeClassifierCV(alphas=ALPHAS.numpy()))
    rows, classes = bank.double().numpy(), labels.numpy()
    counts = labels.bincount()
    counts = counts[counts > 0]
    if len(counts) < 2:
        return None
    if queries is None or targets is None:
        if int(counts.min()) < FOLDS:
            return None
        folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
        return float((cross_val_predict(model, rows, classes, cv=folds) == classes).mean())
    return float((model.fit(rows, classes).predict(queries.double().numpy()) == targets.numpy()).mean())
