"""C8: CPU time of `rift --help` against `python -c "import torch"`.

python benchmarks/help_time.py
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys


def cpu_seconds(arguments: list[str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    pairs = [(cpu_seconds(["-m", "riftcli", "--help"]), cpu_seconds(["-c", "import torch"])) for _ in range(12)]
    ours, torch = (statistics.median(column) for column in zip(*pairs, strict=True))
    median = statistics.median(a / b for a, b in pairs)
    verdict = "ok" if median <= 0.15 else "MISSED"
    print(f"C8 rift --help / import torch: {median:.3f} ({ours:.2f} / {torch:.2f} s), target <= 0.15: {verdict}")
