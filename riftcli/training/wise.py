"""Weights between the pretrained and the finetuned ones (WiSE-FT, Wortsman et al. 2022): what `rift wise` does."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import torch

from riftcli import dist
from riftcli import recipe as recipes
from riftcli.console import Console, Stopwatch
from riftcli.errors import ModelError, UsageError
from riftcli.evaluation import metrics_json
from riftcli.evaluation import scores as evaluate
from riftcli.evaluation.metrics_json import model_entry
from riftcli.models.weights import check_saved, save_folder
from riftcli.runs import folder as runs
from riftcli.runs import provenance
from riftcli.training.setup import Parts, set_up

State = dict[str, torch.Tensor]


def parse_alphas(text: str) -> list[float]:
    """`0:1:0.1` (both ends included) or `0,0.5,1`; raise UsageError."""
    try:
        if ":" in text:
            start, stop, step = (float(part) for part in text.split(":"))
            count = round((stop - start) / step)
            if abs(start + count * step - stop) > 1e-6:
                raise UsageError(f"--alphas {text}: steps of {step:g} from {start:g} do not end at {stop:g}")
            alphas = [round(start + (stop - start) * i / count, 10) for i in range(count + 1)]
        else:
            alphas = [float(part) for part in text.split(",")]
    except (ValueError, ZeroDivisionError, OverflowError) as error:
        raise UsageError(f"--alphas {text}: expected START:STOP:STEP or a list, e.g. 0:1:0.1 or 0,0.5,1") from error
    if not alphas or not all(0 <= alpha <= 1 for alpha in alphas):
        raise UsageError(f"--alphas {text}: weights lie between 0 (pretrained) and 1 (finetuned)")
    return alphas


def interpolate(before: State, after: State, alpha: float) -> State:
    """(1 - alpha) * before + alpha * after; both ends are exact, and counters (integers) are taken from `after`."""
    if before.keys() != after.keys():
        odd = sorted(before.keys() ^ after.keys())[0]
        raise ModelError(f"the pretrained and the finetuned model differ in their parameters, e.g. {odd}")
    return {
        name: (1 - alpha) * before[name] + alpha * value if value.is_floating_point() else value for name, value in after.items()
    }


def wise_run(run: Path, alphas: list[float], head: str, device: str = "auto") -> dict[str, Any]:
    """Score every alpha on the validation split, keep the best by the recipe's metric, and report that one on test.

    head: linear_probe (the pretrained end has a head fitted to its features) | finetuned (the same head at both ends).
    Writes RUN/wise/: model/, metrics.json, alphas.csv. Selection never sees the test split.
    """
    from safetensors.torch import load_file

    clock, console = Stopwatch(), Console(quiet=not dist.is_main())
    recipe = _recipe(run)
    parts = set_up(recipe, dist.init(device), console)
    if parts.splits.val is None:
        raise UsageError(f"{run}: alpha is chosen on a validation split, and the recipe has none (data.val)")
    after = {name: value.to(parts.device) for name, value in load_file(run / "model" / "model.safetensors").items()}
    before = {name: value.clone() for name, value in parts.vit.state_dict().items()}
    if head == "finetuned":
        prefix = parts.vit.pretrained_cfg.get("classifier") or "head"
        before |= {name: value for name, value in after.items() if name.startswith(f"{prefix}.")}
    names, best = recipe.eval.metrics, recipe.eval.best
    rows = []
    for alpha in alphas:
        parts.vit.load_state_dict(interpolate(before, after, alpha))
        scores = evaluate.score(names, parts.predict(parts.splits.val, "val"))
        rows.append({"alpha": alpha, **{name: entry["value"] for name, entry in scores.items()}})
        console.line(f"alpha {alpha:g}: validation " + ", ".join(_shown(name, rows[-1][name]) for name in names))
    usable = [row for row in rows if row[best] is not None]
    if not usable:
        raise UsageError(f"{run}: {best} is undefined on the validation split at every alpha; choose another --set eval.best")
    sign = 1 if scores[best]["higher_is_better"] else -1
    chosen = max(usable, key=lambda row: (sign * row[best], -row["alpha"]))["alpha"]  # a tie goes to the pretrained side
    parts.vit.load_state_dict(interpolate(before, after, chosen))
    return _written(run, parts, chosen, head, rows, clock)


def _recipe(run: Path) -> recipes.Recipe:
    """The run's recipe as plain finetuning from a fitted head: what the pretrained end is."""
    stored = run / "recipe.resolved.yaml"
    if not stored.is_file():
        raise UsageError(f"{run}: not a run folder (no recipe.resolved.yaml)")
    own = recipes.parse(recipes.read(stored), stored.name, [])
    if own.adapter.saved == "unmerged":
        name = own.component_name("adapter")
        raise UsageError(f"{run}: {name} inserts layers that the pretrained model lacks, so there is nothing in between")
    if not own.model.pretrained:
        raise UsageError(f"{run}: trained from scratch, so there are no pretrained weights to mix with")
    plain = ["adapter.name=full", "regularizer.name=none", "train.head_init=linear_probe"]
    return recipes.parse(recipes.read(stored), f"{runs.read_run(run).get('recipe', 'recipe')}.yaml", plain)


def _shown(name: str, value: float | None) -> str:
    return f"{name} {'undefined' if value is None else f'{value:.4f}'}"


def _written(run: Path, parts: Parts, chosen: float, head: str, rows: list[dict[str, Any]], clock: Stopwatch) -> dict[str, Any]:
    folder, recipe, test = run / "wise", parts.recipe, parts.splits.test
    seen = parts.predict(test, "test")
    folder.mkdir(exist_ok=True)
    extra = {"rift": {"alpha": chosen, "task": recipe.objective.task}}
    save_folder(folder / "model", parts.vit, parts.splits.train.classes, parts.preprocessing, extra)
    check_saved(folder / "model", parts.vit, parts.preprocessing.input_size)
    model = model_entry(recipe, parts.vit, folder / "model" / "model.safetensors", None, None)
    original = recipes.parse(recipes.read(run / "recipe.resolved.yaml"), "recipe.yaml", [])
    model["method"] = {
        "adapter": original.component_name("adapter"),
        "regularizer": original.component_name("regularizer"),
        "strength": getattr(original.regularizer, "strength", None),
        "wise_alpha": chosen,
        "wise_head": head,
    }
    report = metrics_json.report("wise", model, test, seen, recipe.eval.metrics, recipe.data.name)
    report["data"] |= metrics_json.exceptions(parts.splits.overlap, parts.skipped)
    report["wise"] = {"alpha": chosen, "head": head, "selected_by": recipe.eval.best, "validation": rows}
    report["timing"] = {
        "seconds": clock.seconds,
        "images_per_second": None,
        "peak_memory_bytes": provenance.peak_memory_bytes(parts.device),
    }
    report["env"] = parts.environment()
    with (folder / "alphas.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    runs.write_json(folder / "metrics.json", report)
    return report
