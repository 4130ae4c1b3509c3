"""One self-contained HTML page per run: numbers, curves, recipe. Opens without a network."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import jinja2

from riftcli.report.style import STYLE
from riftcli.run import read_run

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>{{ style }}</style></head><body>
<h1>{{ title }}</h1>
<p>{{ report.data.name }}, split {{ report.data.split }}, {{ report.data.n }} images; {{ report.model.architecture }},
adapter {{ report.model.method.adapter }}, regularizer {{ report.model.method.regularizer }}
{%- if report.model.method.strength is not none %} (strength {{ report.model.method.strength }}){% endif %};
weights of epoch {{ report.model.epoch }}.</p>
<h2>Metrics</h2><table><tr><th>metric</th><th>value</th></tr>
{% for name, entry in report.metrics.items() %}<tr><td>{{ name }}</td><td class="n">{{ number(entry.value) }}</td></tr>
{% endfor %}
</table>
{% if report.retention %}<h2>What was kept</h2>
<table><tr><th>data set</th><th>kNN before</th><th>kNN after</th><th>CKA</th><th>images</th></tr>
{% for name, entry in report.retention.items() %}<tr><td>{{ name }}</td><td class="n">{{ number(entry.knn_before) }}</td>
<td class="n">{{ number(entry.knn_after) }}</td><td class="n">{{ number(entry.cka) }}</td><td class="n">{{ entry.n }}</td></tr>
{% endfor %}</table>{% endif %}
{% if curves %}<h2>Curves</h2><img alt="loss, similarity and validation over the steps" src="data:image/png;base64,{{ curves }}">
{% endif %}
{% if report.confusion_matrix.counts %}<h2>Confusion matrix</h2><table><tr><th>true \\ predicted</th>
{% for c in report.confusion_matrix.classes %}<th>{{ c }}</th>{% endfor %}</tr>
{% for row in report.confusion_matrix.counts %}<tr><th>{{ report.confusion_matrix.classes[loop.index0] }}</th>
{% for cell in row %}<td class="n">{{ cell }}</td>{% endfor %}</tr>{% endfor %}</table>{% endif %}
<h2>Provenance</h2><pre>{{ provenance }}</pre>
<h2>Recipe, every value</h2><pre>{{ recipe }}</pre>
</body></html>
"""


def write_page(run: Path, report: dict[str, Any]) -> None:
    """Write RUN/report.html from the report and the files of the run."""
    curves = run / "plots" / "curves.png"
    environment = jinja2.Environment(autoescape=True)
    environment.globals["number"] = lambda value: "undefined" if value is None else f"{value:.4f}"
    page = environment.from_string(_PAGE).render(
        style=STYLE,
        title=run.name,
        report=report,
        curves=base64.b64encode(curves.read_bytes()).decode() if curves.is_file() else None,
        provenance=json.dumps({k: v for k, v in read_run(run).items() if k != "status"}, indent=1),
        recipe=(run / "recipe.resolved.yaml").read_text(encoding="utf-8"),
    )
    (run / "report.html").write_text(page, encoding="utf-8")
