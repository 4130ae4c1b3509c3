"""Exact retrieval beside the matrix product that it cannot do without.

python benchmarks/retrieval.py [--gallery 100000] [--queries 1000]    384 dimensions, 100 classes, one thread

CMC and average precision over the whole ranking, against the product of queries and gallery alone, and against the product with a
search for the 5 nearest (what an index library would answer, without average precision).
"""

from __future__ import annotations

import argparse

import torch
from paired import ratio

from riftcli.functional.ranking import ranked

DIM, CLASSES, CHUNK = 384, 100, 160

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gallery", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=1_000)
    given = parser.parse_args()
    torch.manual_seed(0)
    gallery = torch.nn.functional.normalize(torch.randn(given.gallery, DIM), dim=1)
    queries = torch.nn.functional.normalize(torch.randn(given.queries, DIM), dim=1)
    labels, gallery_labels = torch.randint(CLASSES, (given.queries,)), torch.randint(CLASSES, (given.gallery,))

    def exact():
        ranked(queries, gallery, labels, gallery_labels, places=(1, 5))

    def product():
        for some in queries.split(CHUNK):
            some @ gallery.T

    def nearest():
        for some in queries.split(CHUNK):
            (some @ gallery.T).topk(5, 1)

    ratio("CMC and mAP / bare product", exact, product, 3.0)
    ratio("five nearest / bare product", nearest, product, 1.5)
