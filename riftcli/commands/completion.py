"""What a shell offers when a word is completed: recipes, runs, keys of --set. Light: a person waits for it."""

from __future__ import annotations

from pathlib import Path


def complete_recipe(incomplete: str) -> list[str]:
    """Names of shipped recipes, and recipe files beside them."""
    from glob import escape, glob

    from riftcli.recipe.reader import shipped_names

    files = glob(f"{escape(incomplete)}*.yaml")
    return [name for name in [*files, *shipped_names()] if name.startswith(incomplete)]


def complete_run(incomplete: str) -> list[str]:
    """Run folders below runs/."""
    from riftcli.runs.folder import training_runs

    found = [str(run) for run in sorted(training_runs(Path("runs")))]
    return [name for name in found if name.startswith(incomplete)]


def complete_key(incomplete: str) -> list[str]:
    """Keys of a recipe, as --set takes them."""
    if "=" in incomplete:
        return []
    from riftcli.recipe.explain import all_keys

    return [f"{key}=" for key in all_keys() if key.startswith(incomplete)]
