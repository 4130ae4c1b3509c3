"""TensorBoard (extra `tensorboard`): event files in the run folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from riftcli.errors import EnvironmentError


@dataclass(frozen=True)
class TensorBoard:
    """Curves in RUN/tensorboard; a resumed run drops what lies behind its checkpoint and goes on."""

    def require(self) -> None:
        """Raise EnvironmentError without the extra."""
        try:
            import torch.utils.tensorboard  # noqa: F401
        except ImportError:
            raise EnvironmentError("train.track tensorboard needs the extra: pip install 'riftcli[tensorboard]'") from None

    def open(self, run: Path, settings: dict[str, Any], step: int) -> Writer:
        """step: that the run goes on after."""
        from torch.utils.tensorboard import SummaryWriter

        return Writer(SummaryWriter(str(run / "tensorboard"), purge_step=step + 1 if step else None))


class Writer:
    """Event files that are open."""

    def __init__(self, writer: Any) -> None:
        self._writer = writer

    def log(self, step: int, values: dict[str, float]) -> None:
        """Numbers of a step."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()  # a killed run keeps what it logged

    def close(self) -> None:
        """End of the run."""
        self._writer.close()
