"""No regularizer."""

from __future__ import annotations

from dataclasses import dataclass

from riftcli.protocols import RegularizerContext


@dataclass(frozen=True)
class NoRegularizer:
    """Nothing is added to the task loss."""

    def build(self, context: RegularizerContext) -> None:
        """Return None: the loop then skips the term altogether."""
        return
