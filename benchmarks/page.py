"""A page of results: what was promised, what was measured, and the command."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.result import Result
from lada_ray.page import page_environment

TEMPLATE = """{% extends "page.html.jinja" %}
{% block title %}Benchmarks of lada_ray{% endblock %}
{% block main %}
<h1>Benchmarks</h1>
<p class="lead">Every figure is a ratio between two things that were measured in turn in one run.</p>
<pre>{{ command }}</pre>
{% for result in results %}
<h2>{{ result.name }}</h2>
<p>{{ result.what }}</p>
<table class="plain">
{% for bar in result.bars %}
<tr><td>{{ bar.what }}</td><td class="num">{{ "%.3g" % bar.value }}</td>
<td class="{{ "gain" if bar.met else "loss" }}">{{ bar.side }} {{ "%g" % bar.limit }}
{{ "" if bar.met else "missed" }}</td></tr>
{% endfor %}
</table>
<details><summary>figures</summary><div class="inside"><table class="plain">
{% for name, value in result.figures.items() %}
<tr><td>{{ name }}</td><td class="num">{{ "%.4g" % value if value is number else value }}</td></tr>
{% endfor %}
</table></div></details>
<p class="soft small">{{ result.machine }}</p>
{% endfor %}
{% endblock %}
"""


def results_html(results: Sequence[Result], command: str) -> str:
    """One self-contained page.

    Args:
        results: in the order in which they are to be shown.
        command: that gave them.
    """
    return page_environment().from_string(TEMPLATE).render(results=results, command=command)
