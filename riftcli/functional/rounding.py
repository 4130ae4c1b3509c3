"""What of a table of features is more than rounding: ranks, directions and similarities of the rest are those of noise."""

from __future__ import annotations

import torch

from riftcli.functional.covariance import centre

# In single precision the features of 12 blocks were off by 9 roundings (against fp64), the direction that a LayerNorm removes
# came back at 0.8 in the units of `noise_level`, and the weakest real direction stood at 5,000.
ROUNDINGS = 16


def rounding_error(rows: torch.Tensor) -> float:
    """Frobenius norm of what rounding may have done to features (N, D), which come in the precision they were computed in."""
    return ROUNDINGS * torch.finfo(rows.dtype).eps * float(torch.linalg.norm(rows.detach().double()))


def noise_level(rows: torch.Tensor) -> float:
    """The largest singular value of such an error, were it independent from entry to entry; (N, D)."""
    n, dim = rows.shape
    return rounding_error(rows) * (n**-0.5 + dim**-0.5)


def is_constant(rows: torch.Tensor) -> bool:
    """Do the rows differ by no more than rounding, or are they not finite? (N, D)."""
    return not float(torch.linalg.norm(centre(rows.detach().double()))) > rounding_error(rows)  # NaN is above nothing
