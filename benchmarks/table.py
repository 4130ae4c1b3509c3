"""Print repeats as a Markdown table: python benchmarks/table.py OUT/full-1e-5 OUT/rift-1e-5 ..."""

import json
import sys
from pathlib import Path


def cell(entry: dict) -> str:
    if entry["mean"] is None:
        return "-"
    return f"{entry['mean']:.3f} ± {entry['std']:.3f}"


def main(folders: list[str]) -> None:
    print("| run | accuracy | CKA | CKA debiased | ECE | kNN before | kNN after | CKA unseen | trained | train s |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for folder in folders:
        report = json.loads((Path(folder) / "metrics.json").read_text())
        cells = [cell(report["metrics"][name]) for name in ("acc", "cka", "cka_debiased", "ece")]
        for entry in report["retention"].values():
            cells += [f"{entry['knn_before']['mean']:.3f}", cell(entry["knn_after"]), cell(entry["cka"])]
        seconds = report["timing"]["train_seconds"]
        count = report["model"]["trainable_params"] or 0
        print("|", " | ".join([Path(folder).name, *cells, f"{count:,}", f"{seconds:.0f}"]), "|")


if __name__ == "__main__":
    main(sys.argv[1:])
