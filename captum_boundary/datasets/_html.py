"""The gallery's page: what does not change with what is looked at is written into it."""

from __future__ import annotations

import html
from collections.abc import Sequence
from importlib import resources
from string import Template

from captum_boundary.datasets._summary import ClassSummary, Summary

__all__ = ["page"]

_MOST_IN_A_MATRIX = 25
_N_PAIRS = 40


def page(title: str, version: str, summary: Summary, class_names: Sequence[str] | None) -> str:
    """The page as text."""
    template = (resources.files("captum_boundary.datasets") / "_page" / "index.html").read_text(encoding="utf-8")
    names = _Names(class_names)
    parts = [_numbers(summary), _extremes(summary), _distances(summary, names), _neighbours(summary, names)]
    return Template(template).substitute(
        title=html.escape(title), version=html.escape(version), summary="\n".join(parts)
    )


class _Names:
    def __init__(self, names: Sequence[str] | None) -> None:
        self.names = names

    def __getitem__(self, number: int) -> str:
        return html.escape(f"class {number}" if self.names is None else self.names[number])


def _numbers(summary: Summary) -> str:
    facts = [("Examples", f"{summary.n_examples:,}")]
    if summary.accuracy is not None:
        facts.append(("Predicted as labelled", f"{summary.accuracy:.1%}"))
    if summary.found is not None:
        facts.append(("Boundary found", f"{summary.found:.1%}"))
    if summary.distance is not None:
        facts.append(("Median distance", f"{summary.distance:.3g}"))
    if summary.evaluations is not None:
        facts.append(("Model evaluations, mean", f"{summary.evaluations:,.0f}"))
    facts.append(("Errors", f"{summary.n_failed:,}"))
    cells = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts)
    return f'<dl class="numbers">{cells}</dl>'


def _extremes(summary: Summary) -> str:
    by = "distance" if summary.distance is not None else "margin"
    what = "nearest to the boundary" if by == "distance" else "with the smallest margin"
    opposite = "farthest from it" if by == "distance" else "with the largest"
    parts = []
    for heading, rows, sort in (
        (f"Least certain: {what}", summary.least_certain, by),
        (f"Most certain: {opposite}", summary.most_certain, f"-{by}"),
    ):
        numbers = " ".join(map(str, rows))
        parts.append(f'<h2>{heading}</h2>\n<div class="strip" data-rows="{numbers}" data-query="sort={sort}"></div>')
    return "\n".join(parts)


def _distances(summary: Summary, names: _Names) -> str:
    largest = max((each.distances[-1] for each in summary.classes if each.distances), default=0.0)
    if not largest:
        return ""
    rows = "\n".join(_distance_row(each, largest, names) for each in summary.classes)
    return f"""<h2>Distance to the boundary, by class</h2>
<div class="wide"><table>
<thead><tr><th class="text" scope="col">class</th><th scope="col">examples</th><th scope="col">found</th>
<th scope="col">median</th>
<th class="text" scope="col">from 0 to {largest:.3g}: the middle half, and four fifths</th></tr></thead>
<tbody>
{rows}
</tbody></table></div>"""


def _distance_row(each: ClassSummary, largest: float, names: _Names) -> str:
    spread, median = "", ""
    if each.distances:
        low, lower, middle, upper, high = (100 * distance / largest for distance in each.distances)
        median = f"{each.distances[2]:.3g}"
        spread = (
            f'<div><span class="range" style="left:{low:.2f}%;width:{high - low:.2f}%"></span>'
            f'<span class="box" style="left:{lower:.2f}%;width:{upper - lower:.2f}%"></span>'
            f'<span class="middle" style="left:{middle:.2f}%"></span></div>'
        )
    return (
        f'<tr><th scope="row"><a href="#examples?target={each.target}">{names[each.target]}</a></th>'
        f"<td>{each.n_examples:,}</td><td>{each.n_found / each.n_examples:.0%}</td><td>{median}</td>"
        f'<td class="spread">{spread}</td></tr>'
    )


def _neighbours(summary: Summary, names: _Names) -> str:
    if not summary.neighbours:
        return ""
    classes = sorted({each.target for each in summary.classes} | {other for _, other in summary.neighbours})
    table = _matrix if len(classes) <= _MOST_IN_A_MATRIX else _pairs
    return f"<h2>What lies on the other side</h2>\n{table(summary, classes, names)}"


def _matrix(summary: Summary, classes: list[int], names: _Names) -> str:
    heads = "".join(f'<th scope="col">{names[other]}</th>' for other in classes)
    rows = []
    for target in classes:
        total = sum(summary.neighbours[target, other] for other in classes)
        cells = "".join(_cell(target, other, summary.neighbours[target, other], total) for other in classes)
        rows.append(f'<tr><th scope="row">{names[target]}</th>{cells}</tr>')
    body = "\n".join(rows)
    return f"""<p>Rows are the classes explained, columns the classes beyond the nearest boundary.</p>
<div class="wide"><table class="matrix"><thead><tr><td></td>{heads}</tr></thead>
<tbody>
{body}
</tbody></table></div>"""


def _cell(target: int, other: int, count: int, total: int) -> str:
    if not count:
        return "<td></td>"
    link = f'<a href="#examples?target={target}&amp;adversarial={other}">{count:,}</a>'
    return f'<td style="--share:{count / total:.3f}">{link}</td>'


def _pairs(summary: Summary, _: list[int], names: _Names) -> str:
    rows = "\n".join(
        f'<tr><th scope="row">{names[target]}</th><th scope="row">{names[other]}</th><td>'
        f'<a href="#examples?target={target}&amp;adversarial={other}">{count:,}</a></td></tr>'
        for (target, other), count in summary.neighbours.most_common(_N_PAIRS)
    )
    return f"""<p>The {_N_PAIRS} most frequent of {len(summary.neighbours):,} pairs.</p>
<div class="wide"><table><thead><tr><th class="text" scope="col">class</th><th class="text" scope="col">other side</th>
<th scope="col">examples</th></tr></thead>
<tbody>
{rows}
</tbody></table></div>"""
