"""Weights between the pretrained and the finetuned ones (WiSE-FT, Wortsman et al. 2022): what `rift wise` does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from riftcli import dist
from riftcli import recipe as recipes
from riftcli.console import Console, Stopwatch
from riftcli.errors import ModelError, UsageError
from riftcli.evaluation.metrics_json import model_part, split_report, timing_part
from riftcli.evaluation.scores import score
from riftcli.files import write_json
from riftcli.models.backbone import OPEN_CLIP
from riftcli.models.weights import check_saved, save_folder, saved_state, saved_weights
from riftcli.runs import folder as runs
from riftcli.runs.result_table import write_csv
from riftcli.training.setup import Setup, set_up
from riftcli.training.transfer import measure_transfer

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


def wise_run(run: Path, alphas: list[float], head: str | None, device: str = "auto") -> dict[str, Any]:
    """Score every alpha on the validation split, keep the best by the recipe's metric, and report that one on test.

    head: of the pretrained end: linear_probe (fitted to its features) | finetuned (the same at both ends) | zero_shot (the text
    tower's, as published); None takes zero_shot where there is a text tower. A run that trains on texts has a zero-shot head at
    every alpha, of the text tower at that alpha.
    Writes RUN/wise/: model/, metrics.json, alphas.csv. Selection never sees the test split.
    """
    clock, console = Stopwatch(), Console(quiet=not dist.is_main())
    recipe = _recipe(run, head)
    head = recipe.train.head_init if head is None else head
    setup = set_up(recipe, dist.init(device), console, accept=True)
    vit, best = setup.network.vit, setup.recipe.eval.best
    if setup.data.splits.val is None:
        raise UsageError(f"{run}: alpha is chosen on a validation split, and the recipe has none (data.val)")
    after = {name: value.to(setup.device) for name, value in saved_state(run / "model").items()}
    before = {name: value.clone() for name, value in vit.state_dict().items()}
    if head == "finetuned" and setup.network.head is None:
        prefix = vit.pretrained_cfg.get("classifier") or "head"
        before |= {name: value for name, value in after.items() if name.startswith(f"{prefix}.")}
    rows, higher_is_better = _scored(setup, before, after, alphas, console)
    usable = [row for row in rows if row[best] is not None]
    if not usable:
        raise UsageError(f"{run}: {best} is undefined on the validation split at every alpha; choose another --set eval.best")
    sign = 1 if higher_is_better else -1
    chosen = max(usable, key=lambda row: (sign * row[best], -row["alpha"]))["alpha"]  # a tie goes to the pretrained side
    vit.load_state_dict(interpolate(before, after, chosen))
    if setup.network.head is not None:
        setup.network.head.refresh()
    return _written(run, setup, chosen, head, rows, clock)


def _scored(
    setup: Setup, before: State, after: State, alphas: list[float], console: Console
) -> tuple[list[dict[str, Any]], bool]:
    """(the metrics of every alpha on validation, whether more is better of the one that chooses)."""
    names, val = setup.recipe.eval.metrics, setup.data.splits.val
    assert val is not None
    rows, higher_is_better = [], True
    for alpha in alphas:
        setup.network.vit.load_state_dict(interpolate(before, after, alpha))
        scores = score(names, setup.predict(val, "val", again=True))
        higher_is_better = scores[setup.recipe.eval.best]["higher_is_better"]
        rows.append({"alpha": alpha, **{name: entry["value"] for name, entry in scores.items()}})
        console.line(f"alpha {alpha:g}: validation " + ", ".join(_text(name, rows[-1][name]) for name in names))
    return rows, higher_is_better


def _recipe(run: Path, head: str | None) -> recipes.Recipe:
    """The run's recipe as plain finetuning from the head of the pretrained end."""
    stored = run / "recipe.resolved.yaml"
    if not stored.is_file():
        raise UsageError(f"{run}: not a run folder (no recipe.resolved.yaml)")
    own = recipes.stored(stored)
    if own.adapter.saved == "unmerged":
        name = own.component_name("adapter")
        raise UsageError(f"{run}: {name} inserts layers that the pretrained model lacks, so there is nothing in between")
    if not own.model.pretrained:
        raise UsageError(f"{run}: trained from scratch, so there are no pretrained weights to mix with")
    two_towers = own.model.name.startswith(OPEN_CLIP) and own.model.feature == "pooled"
    if head == "zero_shot" and not two_towers:
        raise UsageError(f"--head zero_shot: {own.model.name} has no text tower to make a head of; use linear_probe or finetuned")
    start = "linear_probe" if head == "finetuned" else head or ("zero_shot" if two_towers else "linear_probe")
    plain = ["adapter.name=full", "regularizer.name=none", "reference=null", "train.start_from=null", f"train.head_init={start}"]
    plain += ["train.shard_frozen=false", "launch.image_memory=0"]  # which nothing is trained for
    return recipes.stored(stored, f"{runs.read_run(run).get('recipe', 'recipe')}.yaml", plain)


def _text(name: str, value: float | None) -> str:
    return f"{name} {'undefined' if value is None else f'{value:.4f}'}"


def _written(run: Path, setup: Setup, chosen: float, head: str, rows: list[dict[str, Any]], clock: Stopwatch) -> dict[str, Any]:
    folder, recipe, test = run / "wise", setup.recipe, setup.data.splits.reported
    network = setup.network
    seen = setup.predict(test, setup.data.splits.reported_as)
    folder.mkdir(exist_ok=True)
    extra = {"rift": {"alpha": chosen, "task": recipe.objective.task}}
    save_folder(folder / "model", network.vit, setup.data.splits.train.classes, network.preprocessing, extra)
    check_saved(folder / "model", network.vit, network.preprocessing.input_size)
    original = recipes.stored(run / "recipe.resolved.yaml")
    method = {
        "adapter": original.component_name("adapter"),
        "regularizer": original.component_name("regularizer"),
        "strength": original.method["strength"],
        "wise_alpha": chosen,
        "wise_head": head,
    }
    report = split_report(
        "wise",
        test,
        seen,
        recipe.eval.metrics,
        model=model_part(network.vit, method, saved_weights(folder / "model"), None),
        data_name=recipe.data.name,
        overlap=setup.data.splits.admitted,
        skipped=setup.data.skipped,
        timing=timing_part(setup.device, None, seconds=clock.seconds),
        env=setup.environment(),
        chose_weights=setup.data.splits.test is None,
    )
    report |= measure_transfer(setup)
    report["wise"] = {"alpha": chosen, "head": head, "selected_by": recipe.eval.best, "validation": rows}
    write_csv(folder / "alphas.csv", rows)
    write_json(folder / "metrics.json", report)
    return report
