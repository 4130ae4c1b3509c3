"""One self-contained page about a data set: counts, findings, samples of every class, pairs that look alike."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from riftcli.data.findings import Audit
from riftcli.data.images import read_image
from riftcli.data.split import Split
from riftcli.errors import DataError
from riftcli.files import write_text
from riftcli.report.style import STYLE

SAMPLES, CLASSES, SIDE = 6, 40, 112  # images of a class, classes, pixels
ROWS = 200  # of the table of classes

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ report.data }}: data check</title><style>{{ style }}
.error { color: #b00020 } .warning { color: #8a5a00 } .row { display: flex; flex-wrap: wrap; gap: .4rem; margin: .2rem 0 1rem }
figure { margin: 0; width: 112px } figcaption { font-size: .65rem; overflow-wrap: anywhere; color: #5a6472 }
h3 { font-size: .95rem; margin: 0 }
</style></head><body><main>
<h1>{{ report.data }}: {{ report.errors }} errors, {{ report.warnings }} warnings</h1>
<p>Recipe {{ report.recipe }}, checked {{ report.created }}.</p>
<h2>Findings</h2>
{% for f in report.findings %}<p class="{{ f.level }}"><b>{{ f.level }}</b> {{ f.splits | join(" and ") }}: {{ f.message }}
{% if f.examples %}<br><small>{{ f.examples[:20] | join("<br>" | safe) }}</small>{% endif %}</p>
{% else %}<p>Nothing to complain about.</p>{% endfor %}
<h2>Splits</h2><table><tr><th>split</th><th>images</th><th>unreadable</th><th>width</th><th>height</th><th>modes</th></tr>
{% for name, s in report.splits.items() %}<tr><td>{{ name }}</td><td class="n">{{ s.n }}</td><td class="n">{{ s.unreadable }}</td>
<td>{% if s.sizes %}{{ s.sizes.width.min }} to {{ s.sizes.width.max }}{% endif %}</td>
<td>{% if s.sizes %}{{ s.sizes.height.min }} to {{ s.sizes.height.max }}{% endif %}</td>
<td>{% for mode, count in s.modes.items() %}{{ mode }} {{ count }} {% endfor %}</td></tr>{% endfor %}</table>
{% for data, group in tables.items() %}<h2>{{ data }}: samples per class</h2><table><tr><th>class</th>
{% for name in group.splits %}<th>{{ name }}</th>{% endfor %}</tr>
{% for label in group.classes[:most] %}<tr><td>{{ label }}</td>{% for s in group.splits.values() %}
<td class="n">{{ s.class_counts.get(label, "-") }}</td>{% endfor %}</tr>{% endfor %}</table>
{% if group.classes | length > most %}
<p>{{ group.classes | length - most }} more classes: rift data check --json lists all.</p>{% endif %}
{% endfor %}
{% if pairs %}<h2>Pairs that look alike</h2>{% for pair in pairs %}<div class="row">{% for image in pair %}
<figure><img alt="{{ image.id }}" src="data:image/jpeg;base64,{{ image.data }}"><figcaption>{{ image.id }} ({{ image.split }})
</figcaption></figure>{% endfor %}</div>{% endfor %}{% endif %}
{% for name, galleries in samples.items() %}<h2>{{ name }}</h2>
{% for label, images in galleries.items() %}<h3>{{ label }}</h3><div class="row">{% for image in images %}
<figure><img alt="{{ label }}" src="data:image/jpeg;base64,{{ image.data }}"><figcaption>{{ image.id }}</figcaption></figure>
{% else %}<small>none</small>{% endfor %}</div>{% endfor %}{% endfor %}
{% if left_out %}<p>{{ left_out }} more classes are not shown.</p>{% endif %}
</main></body></html>
"""


def write_data_page(path: Path, audit: Audit) -> None:
    """Write the page; samples are spread over each class, the same ones every time."""
    report = audit.report()
    tables: dict[str, Any] = {}
    for name, entry in report["splits"].items():
        table = tables.setdefault(entry["data"], {"splits": {}, "classes": []})
        table["splits"][name] = entry
        table["classes"] = list(dict.fromkeys([*table["classes"], *entry["class_counts"]]))
    depth = audit.reading.bit_depth
    samples = {name: _samples(split, depth) for name, split in audit.splits.items()}
    pairs = [
        [image for image in (_thumbnail(audit.splits[a], i, a, depth), _thumbnail(audit.splits[b], j, b, depth)) if image]
        for a, i, b, j in audit.near
    ]
    page = jinja2.Environment(autoescape=True).from_string(_PAGE)
    path.parent.mkdir(parents=True, exist_ok=True)
    left_out = sum(max(0, len(table["classes"]) - CLASSES) for table in tables.values())
    text = page.render(style=STYLE, report=report, tables=tables, samples=samples, pairs=pairs, left_out=left_out, most=ROWS)
    write_text(path, text)


def _samples(split: Split, depth: int | None) -> dict[str, list[dict[str, Any]]]:
    found = {}
    for label, name in list(enumerate(split.classes))[:CLASSES]:
        members = np.flatnonzero(split.targets[:, label] == 1 if split.task == "multilabel" else split.targets == label)
        chosen = members[np.linspace(0, len(members) - 1, min(SAMPLES, len(members))).astype(int)] if len(members) else []
        found[name] = [image for image in (_thumbnail(split, int(i), split.name, depth) for i in chosen) if image]
    return found


def _thumbnail(split: Split, i: int, name: str, depth: int | None) -> dict[str, str] | None:
    try:
        image = split.read(i) if split.paths is None else read_image(split.paths[i], depth, SIDE)
    except DataError:
        return None  # it stands among the findings
    image.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=80)
    return {"id": split.ids[i], "split": name, "data": base64.b64encode(file.getvalue()).decode()}
