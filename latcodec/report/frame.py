"""The frame of every page of a report: one HTML file with its styles and scripts inside.

A template beside this file extends "frame", fills its blocks and takes its tables and charts from "parts".
"""

from __future__ import annotations

from pathlib import Path

from latcodec.report.labels import COLOURS

FRAME = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{% block title %}{% endblock %}</title>
<link rel="icon" href="data:,">
<style>
{{ colours }}
{{ css }}
{% block style %}{% endblock %}
</style>
</head>
<body>
<header>
{% block header %}{% endblock %}
</header>
<main>
{% block main %}{% endblock %}
</main>
<footer>{% block footer %}{% endblock %}</footer>
<script>
{{ js }}
</script>
</body>
</html>
"""

PARTS = """
{% macro body(rows) %}
<tbody>
{% for row in rows %}
<tr><th scope="row">{{ row[0] }}</th>{% for cell in row[1:] %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</tbody>
{% endmacro %}

{% macro facts(heading, rows) %}
<div class="scroll" tabindex="0" role="region" aria-label="{{ heading }}">
<table><tbody>
{% for name, value in rows %}
<tr><th scope="row">{{ name }}</th><td class="left wrap">{{ value }}</td></tr>
{% endfor %}
</tbody></table></div>
{% endmacro %}

{% macro chart(drawn) %}
<div class="chart">
<div role="img" aria-label="{{ drawn.alt }}">{{ drawn.wide | safe }}{{ drawn.narrow | safe }}</div>
{% if drawn.legend %}
<div class="legend" role="group" aria-label="Bring out a curve">
{% for item in drawn.legend %}
<button type="button" aria-pressed="false" data-series="s{{ item.key }}"><svg viewBox="0 0 26 10" aria-hidden="true">\
<line x1="0" y1="5" x2="26" y2="5" style="stroke: var(--{{ item.colour }}); stroke-width: {{ item.width }}"\
{% if item.dash %} stroke-dasharray="{{ item.dash }}"{% endif %}/></svg>{{ item.label }}</button>
{% endfor %}
</div>
{% endif %}
<div class="tip" hidden></div>
</div>
{% endmacro %}
"""


def render(name: str, **values) -> str:
    """The page that the template of this name makes of `values`, every text in them escaped."""
    import jinja2
    from markupsafe import Markup

    own, css, js = (_beside(file) for file in (name, "page.css", "page.js"))
    strict = jinja2.Environment(
        loader=jinja2.DictLoader({"frame": FRAME, "parts": PARTS, name: own}),
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    return strict.get_template(name).render(css=Markup(css), js=Markup(js), colours=Markup(_colours()), **values)


def _beside(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def _colours() -> str:
    light, dark = ("".join(f"--{name}:{pair[i]};" for name, pair in COLOURS.items()) for i in (0, 1))
    return f":root{{{light}}}\n@media (prefers-color-scheme: dark){{:root{{{dark}}}}}"
