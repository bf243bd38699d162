"""The demonstration as one HTML page that stands alone."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence

from captum_boundary._demo.explanation import HEADINGS

__all__ = ["page"]

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>captum-boundary: digits, explained from the decision boundary</title>
<style>
body {{ font: 16px/1.55 system-ui, sans-serif; color: #222; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; }}
h1 {{ font-size: 1.6rem; }} h2 {{ font-size: 1.2rem; margin-top: 2rem; }}
p, li {{ max-width: 46rem; }}
img {{ width: 100%; height: auto; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .25rem .8rem; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap; }}
th {{ white-space: normal; vertical-align: bottom; }}
pre {{ background: #f4f4f4; padding: .8rem 1rem; overflow-x: auto; }}
</style>
</head>
<body>
<h1>Digits, explained from the decision boundary</h1>
<p>A small network was trained on handwritten digits; it is right on {accuracy:.1%} of the digits it has not seen. For
each digit below, the nearest image was found that the network takes for another digit: the boundary point. For the
first digit: <strong>{first}</strong></p>
<p>The three maps in the middle are Captum's usual ones, with the gradient at the input or a black image as the
baseline. The three on the right start from the boundary point: its gradient (BSM), integrated gradients from it (BIG),
and DeepLift with it as the baseline. They show which pixels keep the digit on its side of the boundary, and no baseline
has to be chosen.</p>
<div class="wide"><img src="data:image/png;base64,{picture}" alt="Digits, boundary points and attribution maps"></div>
<h2>In words</h2>
<ol start="0">
{sentences}
</ol>
<h2>The numbers</h2>
<div class="wide"><table>
<thead><tr>{headings}</tr></thead>
<tbody>
{rows}
</tbody>
</table></div>
<p><em>Distance</em> is Euclidean (l2), for pixels from 0 (black) to 1 (white): the smaller, the less it takes to
change the decision. The <em>margin</em> is the logit of the predicted class less the largest other logit. Boundary
points lie just beyond the boundary, where it is 0, so that theirs is slightly negative. The <em>delta of BIG</em> is
the sum of the attributions less the change of the logit that they explain.</p>
<h2>With your own model</h2>
<pre>{example}</pre>
</body>
</html>
"""

_EXAMPLE = """from captum.attr import DeepLift
from captum_boundary import BoundaryAttribution, BoundaryIntegratedGradients, NearestBoundary

model.eval()                                     # any classifier that returns logits
search = NearestBoundary(model, bounds=(0, 1))   # bounds: the range of real inputs
boundary = search.find(inputs)                   # closest points where the decision changes
print(boundary.distance, boundary.adversarial)

maps = BoundaryIntegratedGradients(model, search).attribute(inputs, boundary=boundary)
maps = BoundaryAttribution(model, DeepLift, search).attribute(inputs, boundary=boundary)"""


def page(picture: bytes, rows: Iterable[tuple[str, ...]], sentences: Sequence[str], accuracy: float) -> str:
    """The page as text, with the picture (PNG) inside it."""
    return _PAGE.format(
        first=html.escape(sentences[0]),
        sentences="\n".join(f"<li>{html.escape(sentence)}</li>" for sentence in sentences),
        accuracy=accuracy,
        picture=base64.b64encode(picture).decode(),
        headings="".join(f"<th>{html.escape(heading)}</th>" for heading in HEADINGS),
        rows="\n".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows),
        example=html.escape(_EXAMPLE),
    )
