"""Saved weights to a hub of models: the folder as timm or open_clip loads it from there, with a licence in its card."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from pathlib import Path

from riftcli.errors import EnvironmentError, ModelError, UsageError
from riftcli.models.published import MANIFEST, check_published

SENT = ("README.md", "*.json", "*.safetensors", "*.txt", "*.model")  # a card, weights and configurations: nothing that runs


def files_of(folder: Path) -> list[Path]:
    """What is sent of a folder of weights, sorted; raise ModelError without weights or card."""
    found = sorted({path for pattern in SENT for path in folder.glob(pattern) if path.is_file() and path.name != MANIFEST})
    names = {path.name for path in found}
    if not any(name.endswith(".safetensors") for name in names) or "README.md" not in names:
        raise ModelError(f"{folder}: no weights (*.safetensors) with a card (README.md), so there is nothing to push")
    return found


def with_licence(card: str, licence: str) -> str:
    """A card whose front matter names the licence; raise UsageError for what is no licence's name."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9.\-]*", licence):
        raise UsageError(
            f"--license {licence}: not the name of a licence as hubs have them, e.g. apache-2.0, cc-by-nc-4.0, other"
        )
    if not card.startswith("---\n") or "\n---" not in card[4:]:
        return f"---\nlicense: {licence}\n---\n{card}"
    head, rest = card[4:].split("\n---", 1)
    kept = [line for line in head.splitlines() if not line.startswith("license:")]
    return "\n".join(["---", f"license: {licence}", *kept]) + "\n---" + rest


def push_folder(folder: Path, repo: str, licence: str, private: bool) -> str:
    """Send a folder of weights as one commit, making the repository where there is none; returns its address.

    The hub is that of HF_ENDPOINT, whoever is logged in (`hf auth login`, or HF_TOKEN). Raises EnvironmentError where it cannot
    be reached or refuses, UsageError for a repository that is not OWNER/NAME.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise UsageError(f"{repo}: not a repository; give OWNER/NAME")
    check_published(folder)
    files, card = files_of(folder), with_licence((folder / "README.md").read_text(encoding="utf-8"), licence)
    with tempfile.TemporaryDirectory() as place:
        for path in files:
            shutil.copyfile(path, Path(place) / path.name)
        (Path(place) / "README.md").write_text(card, encoding="utf-8")
        api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
        try:
            api.create_repo(repo, private=private, exist_ok=True)
            api.upload_folder(repo_id=repo, folder_path=place, commit_message="Weights and card, by rift push")
        except HFValidationError as error:
            raise UsageError(f"{repo}: {error}") from error
        except HfHubHTTPError as error:
            status = getattr(error.response, "status_code", None)
            remedy = "log in with `hf auth login`, with a token that may write there" if status in (401, 403) else "try again"
            raise EnvironmentError(f"{repo}: the hub refuses ({str(error).splitlines()[0]}); {remedy}") from error
        except Exception as error:  # what the client raises without a network depends on its HTTP library
            raise EnvironmentError(
                f"{repo}: the hub cannot be reached ({type(error).__name__}: {error}); nothing is lost"
            ) from error
    return f"{api.endpoint}/{repo}"
