"""What a report page would show and a run does not have yet, and the command that measures it."""

from __future__ import annotations

import re
from pathlib import Path

from riftcli.evaluation.metrics_json import eval_name
from riftcli.models.loading import tensor_names
from riftcli.models.published import check_published
from riftcli.models.weights import saved_weights
from riftcli.runs.reader import read_json, read_report

ATTENTION = re.compile(r"(visual\.\w+\.)?(res)?blocks\.\d+\.attn\.")  # by timm's names, or open_clip's

COMMANDS = {
    "calibration": "rift eval --run {run}",
    "similarity": "rift similarity --run {run} --layers all --map",
    "sharpness": "rift sharpness --run {run}",
    "attention": "rift attention --run {run}",
}


def missing_parts(run: Path) -> list[str]:
    """Parts of a page that nobody measured on the test split of this run; no attention of networks that have none."""
    name = eval_name(read_report(run))
    weights = saved_weights(run / "model")
    assert weights is not None
    check_published(run / "model")
    attends = any(map(ATTENTION.match, tensor_names(weights)))

    def has(path: Path, *keys: str) -> bool:
        return path.is_file() and all(read_json(path).get(key) for key in keys)

    there = {
        "calibration": (run / "eval" / name / "reliability.csv").is_file(),
        "similarity": has(run / "similarity" / name / "metrics.json", "rows", "layers", "map"),
        "sharpness": has(run / "sharpness" / name / "metrics.json", "rows"),
        "attention": has(run / "attention" / name / "metrics.json", "rows"),
    }
    return [part for part, found in there.items() if not found and (attends or part != "attention")]
