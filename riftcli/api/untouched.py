"""A notebook goes on after a run: what a run changes in the process is put back."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from riftcli import signals


@contextmanager
def untouched() -> Iterator[None]:
    """Environment variables, signal handlers, torch's threads, default dtype and random state (numpy's and Python's too) are
    afterwards as they were, also after an error.
    """
    import numpy as np
    import torch

    environment = dict(os.environ)
    threads, dtype, grad = torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled()
    plain, numpy_state, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    started = torch.cuda.is_initialized()
    cuda, device = (torch.cuda.get_rng_state_all(), torch.cuda.current_device()) if started else ([], 0)
    handlers = {number: signal.getsignal(number) for number in (*signals.NUMBERS, signal.SIGQUIT)}
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(environment)
        torch.set_num_threads(threads)
        torch.set_default_dtype(dtype)
        torch.set_grad_enabled(grad)
        random.setstate(plain)
        np.random.set_state(numpy_state)
        torch.set_rng_state(torch_state)
        if torch.cuda.is_initialized():
            torch.cuda.set_device(device)
            # a GPU that was not in use before would have been seeded with the CPU's seed
            torch.cuda.set_rng_state_all(cuda) if started else torch.cuda.manual_seed_all(torch.initial_seed())
        for number, handler in handlers.items():
            if handler is not None and signal.getsignal(number) is not handler:
                with suppress(ValueError):  # not the main thread: nothing was changed from here
                    signal.signal(number, handler)
