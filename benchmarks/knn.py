"""C7: our kNN against the bare matrix product and against scikit-learn's brute force, with the same predictions.

python benchmarks/knn.py             2,000 queries x 50,000 bank, d = 384, k = 20, one thread
"""

from __future__ import annotations

import numpy as np
import torch
from paired import ratio
from sklearn.neighbors import KNeighborsClassifier

from riftcli.functional.knn import knn_predict

QUERIES, BANK, D, K, CLASSES = 2_000, 50_000, 384, 20, 10


def main() -> None:
    torch.manual_seed(0)
    centres = torch.randn(CLASSES, D)
    labels, wanted = torch.arange(BANK) % CLASSES, torch.arange(QUERIES) % CLASSES
    bank, queries = centres[labels] + 4 * torch.randn(BANK, D), centres[wanted] + 4 * torch.randn(QUERIES, D)
    brute = KNeighborsClassifier(K, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / 0.07), n_jobs=1)
    brute.fit(bank.numpy(), labels.numpy())

    def ours() -> torch.Tensor:
        return knn_predict(bank, labels, queries, K)

    same = float((ours().numpy() == brute.predict(queries.numpy())).mean())
    ratio("C7 kNN / bare matrix product", ours, lambda: queries @ bank.T, 1.3, pairs=12)
    ratio("C7 kNN / scikit-learn brute force", ours, lambda: brute.predict(queries.numpy()), 0.5, pairs=4)
    print(f"C7 same predictions: {same:.4f}")


if __name__ == "__main__":
    main()
