"""Names of optimizers: those that timm is known to have, without importing it, and how to ask it for others."""

from __future__ import annotations

KNOWN = (
    "adabelief", "adadelta", "adafactor", "adafactorbv", "adagrad", "adahessian", "adam", "adamax", "adamp", "adamw",
    "adan", "adanw", "adopt", "adoptw", "cadamw", "clion", "fusedadam", "fusedadamw", "fusedlamb", "fusedsgd", "kron",
    "lamb", "lambc", "laprop", "lars", "larc", "lion", "madgrad", "madgradw", "mars", "momentum", "muon", "nadam", "nadamw",
    "nesterov", "novograd", "radam", "rmsprop", "rmsproptf", "sgd", "sgdp", "sgdw",
)  # fmt: skip


def unknown_optimizer(name: str) -> list[str] | None:
    """None for a name that timm has; else all names that it has."""
    if name in KNOWN:
        return None
    from timm.optim import list_optimizers  # takes seconds: only for names that are rare or wrong

    names = [str(one) for one in list_optimizers()]
    return None if name in names else names
