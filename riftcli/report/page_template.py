"""The page as HTML (a Jinja template), and the script that sorts its runs."""

from __future__ import annotations

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>{{ style }}</style></head><body><main>
{% macro figure(f) %}<figure><figcaption>{{ f.title }}</figcaption>
<img alt="{{ f.title }}" src="{{ f.picture }}">
<small>{{ f.note }} <a download="{{ f.title }}.csv" href="{{ f.table }}">numbers (CSV)</a></small></figure>{% endmacro %}
<h1>{{ title }}</h1>
<p>{{ lead }}</p>
{% if cautions %}<ul class="cautions">{% for line in cautions %}<li>{{ line }}</li>{% endfor %}</ul>{% endif %}
<nav>{% if picture %}<a href="#kept">Kept against learned</a> {% endif %}<a href="#results">Results</a>
{% if mistakes %}<a href="#wrong">Wrong with most confidence</a> {% endif %}
{% if per_class %}<a href="#classes">Class by class</a> {% endif %}
{% for name, _ in sections %}<a href="#s{{ loop.index }}">{{ name.split(":")[0] }}</a> {% endfor %}
<a href="#provenance">Provenance</a></nav>
{% if picture %}<h2 id="kept">Kept against learned</h2>
<div class="grid wide">{% for part in picture %}{{ figure(part) }}{% endfor %}</div>{% endif %}
<h2 id="results">Results</h2>
{% macro results_of(columns) %}
<table class="results"><tr><td></td>{% for name in table.rows %}<th class="n">{{ name }}</th>{% endfor %}</tr>
{% for c in columns %}{% set name, meaning = words(c) %}
<tr><th scope="row">{% if meaning %}<abbr title="{{ meaning }}">{{ name }}</abbr>{% else %}{{ name }}{% endif %}
{%- if table.rows | length > 2 %} <button aria-label="sort by {{ name }}" aria-pressed="false">&#8644;</button>{% endif %}</th>
{% for row in table.rows.values() %}{% set value, change = text(c, row.get(c)) %}
<td class="n{{ ' best' if row.get(c) and row.get(c).best }}"
{%- if row.get(c) and row[c].mean is not none %} data-value="{{ row[c].mean }}"{% endif %}>
{{- value }}{% if change %}<small>{{ change }}</small>{% endif %}</td>
{%- endfor %}</tr>
{% endfor %}</table>{% endmacro %}
{{ results_of(main) }}
{% if minor %}<details><summary>{{ minor | length }} more measures</summary>{{ results_of(minor) }}</details>{% endif %}
<small>{{ caption }} <a download="results.csv" href="{{ results }}">numbers (CSV)</a></small>
{% if before %}<h2>Before and after, on validation</h2>
<table><tr><td></td><th class="n">before the first step</th><th class="n">kept weights</th></tr>
{% for name, old, new in before %}<tr><th scope="row">{{ words(name)[0] }}</th>
<td class="n">{{ old }}</td><td class="n">{{ new }}</td></tr>
{% endfor %}</table>{% endif %}
{% if mistakes %}<h2 id="wrong">Wrong with most confidence</h2>
{% for label, items in mistakes %}{% if mistakes | length > 1 %}<h3>{{ label }}</h3>{% endif %}
<ul class="thumbs">{% for m in items %}<li><img alt="{{ m.id }}" src="{{ m.picture }}"><b>{{ m.predicted }}</b>
<small>{{ m.share }} sure<br>in fact {{ m.target }}</small></li>{% endfor %}</ul>{% endfor %}{% endif %}
{% if per_class %}<h2 id="classes">Class by class</h2>
<details{% if per_class | length <= 12 %} open{% endif %}>
<summary>{{ per_class | length }} classes, those found least first
{%- if per_class | length > most %}, {{ most }} of them{% endif %}</summary>
<table><tr><td></td><th class="n">images</th><th class="n">found</th><th class="n">95 % interval</th>
<th class="n">right when named</th></tr>
{% for row in per_class[:most] %}<tr><th scope="row">{{ row.name }}</th>
{%- set cells = [row.images, row.found] %}{% for cell in cells %}<td class="n">{{ cell }}</td>{% endfor %}
<td class="n">{{ row.interval }}</td><td class="n">{{ row.right }}</td></tr>{% endfor %}</table></details>
<small>Found: share of the class's images that were given it (sensitivity); right when named: share of the images given it
that are of it (PPV). Intervals are Wilson's, by image.</small>{% endif %}
{% for name, parts in sections %}<h2 id="s{{ loop.index }}">{{ name }}</h2>
<div class="grid">{% for part in parts %}{{ figure(part) }}{% endfor %}</div>
{% endfor %}
{% if missing %}<h2>Not measured yet</h2><ul>{% for line in missing %}<li>{{ line }}</li>{% endfor %}</ul>{% endif %}
<h2 id="provenance">Provenance</h2>
{% for item in provenance %}<details><summary>{{ item.label }}: {{ item.summary }}</summary>
<pre>{{ item.run }}</pre><h3>Recipe, every value</h3><pre>{{ item.recipe }}</pre></details>{% endfor %}
<p><small>Written {{ written }} by riftcli.</small></p></main>
{% if table.rows | length > 2 %}<script>{{ sorting }}</script>{% endif %}
</body></html>
"""

# A press of a measure's button puts the runs in its order, in all tables; a second press turns it round.
SORTING = """
document.querySelectorAll("table.results button").forEach(button => button.onclick = () => {
  const down = button.getAttribute("aria-pressed") !== "true";
  document.querySelectorAll("table.results button").forEach(other => other.setAttribute("aria-pressed", "false"));
  button.setAttribute("aria-pressed", String(down));
  const value = cell => "value" in cell.dataset ? Number(cell.dataset.value) : -Infinity;
  const cells = [...button.closest("tr").children].slice(1).map((cell, i) => [value(cell), i]);
  const order = cells.sort((a, b) => (down ? b[0] - a[0] : a[0] - b[0]) || a[1] - b[1]).map(pair => pair[1]);
  document.querySelectorAll("table.results tr").forEach(row => {
    const own = [...row.children].slice(1);
    order.forEach(i => row.append(own[i]));
  });
});
"""
