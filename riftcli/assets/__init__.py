"""Files that ship with the package: the demo's backbone and images, JSON schemas of the reports."""

from importlib.resources import files
from pathlib import Path

ASSETS = Path(str(files("riftcli"))) / "assets"
