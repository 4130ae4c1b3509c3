"""On every rank of torchrun: the commands of a JSON file, one after the other in one group; what each prints goes into NAME.json.

Several processes take longer to start than these commands to run.
"""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout
from pathlib import Path

from riftcli import cli, dist

if __name__ == "__main__":
    dist.init("cpu")
    leave, dist.close = dist.close, lambda: None
    for name, line in json.loads(Path(sys.argv[1]).read_text()):
        out = Path(f"{name}.json") if dist.is_main() else Path("/dev/null")
        with out.open("w") as file, redirect_stdout(file):
            assert cli.run(line) == 0, line
    leave()
