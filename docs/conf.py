"""Sphinx builds the site with these settings."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import runpy
import sys
from pathlib import Path
from typing import Any

from docutils.nodes import SkipNode
from latex2mathml.converter import convert
from PIL import Image

import captum_boundary

DOCS = Path(__file__).parent
GENERATED = DOCS / "_generated"
# Which picture stands for a tutorial, counted from 0; the first where nothing is said.
THUMBNAILS = {"01": 1, "02": 1, "05": 1, "06": 1, "07": 1, "10": 2}
REPOSITORY = "https://github.com/captum-boundary/captum-boundary"

project = "captum-boundary"
author = "The captum-boundary developers"
copyright = author  # noqa: A001 (Sphinx's name)
release = version = captum_boundary.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.doctest",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
exclude_patterns = ["_build", "figures"]
templates_path = ["_templates"]

autosummary_generate = [str(path) for path in DOCS.glob("reference/*.rst")]
autodoc_default_options = {"members": True, "show-inheritance": True, "exclude-members": "attribute_future"}
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "none"  # docstrings name the types
napoleon_numpy_docstring = False
napoleon_use_ivar = True
python_maximum_signature_line_length = 90

# The examples of docstrings are run by pytest; here it is the pages' turn.
doctest_test_doctest_blocks = ""
doctest_global_setup = "import torch\nfrom torch import nn\n_ = torch.manual_seed(0)"

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
html_math_renderer = "mathml"
nb_execution_mode = "off"  # pages show the outputs that notebooks are stored with; CI runs them

# Links into other projects need the network, which a build must not.
intersphinx_mapping = {}
if os.environ.get("READTHEDOCS") or os.environ.get("CAPTUM_BOUNDARY_INTERSPHINX"):
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "torch": ("https://pytorch.org/docs/stable", None),
        "captum": ("https://captum.ai/api", None),
    }

copybutton_exclude = ".linenos, .gp, .go"

html_theme = "furo"
html_title = "captum-boundary"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {
    "source_repository": f"{REPOSITORY}/",
    "source_branch": "main",
    "source_directory": "docs/",
}


def draw_figures(app: Any) -> None:
    """Run the scripts of docs/figures whose pictures are missing or older than they, or than the numbers they draw."""
    GENERATED.mkdir(exist_ok=True)
    numbers = max((DOCS / "benchmarks" / f"{page}.md").stat().st_mtime for page in ("search", "explanations"))
    sys.path.insert(0, str(DOCS / "figures"))
    try:
        for script in sorted((DOCS / "figures").glob("[!_]*.py")):
            picture = GENERATED / f"{script.stem}.svg"
            if not picture.exists() or picture.stat().st_mtime < max(script.stat().st_mtime, numbers):
                runpy.run_path(str(script))["draw"]().savefig(picture)
    finally:
        sys.path.remove(str(DOCS / "figures"))


def copy_tutorials(app: Any) -> None:
    """Put the notebooks of tutorials/ among the pages, where their links to files of the repository lead elsewhere."""
    copies = DOCS / "tutorials"
    notebooks = {path.name: path.read_text(encoding="utf-8") for path in DOCS.parent.glob("tutorials/*.ipynb")}
    for stale in {path.name for path in copies.glob("*.ipynb")} - set(notebooks):
        (copies / stale).unlink()
    for name, text in notebooks.items():
        text = re.sub(r"\]\(\.\./docs/", "](../", text)
        text = re.sub(r"\]\(\.\./(?=[A-Z])", f"]({REPOSITORY}/blob/main/", text)
        copy = copies / name
        thumbnail = GENERATED / f"tutorial_{name[:2]}.png"
        if not copy.exists() or copy.read_text(encoding="utf-8") != text:
            copy.write_text(text, encoding="utf-8")
            thumbnail.unlink(missing_ok=True)
        if not thumbnail.exists():
            save_thumbnail(json.loads(text), THUMBNAILS.get(name[:2], 0), thumbnail)


def save_thumbnail(notebook: dict[str, Any], place: int, path: Path) -> None:
    """Save one of the pictures that a notebook shows, as it is stored."""
    outputs = [output.get("data", {}) for cell in notebook["cells"] for output in cell.get("outputs", [])]
    pictures = [data.get("image/png") or data.get("image/jpeg") for data in outputs]
    chosen = [picture for picture in pictures if picture][place]
    image = Image.open(io.BytesIO(base64.b64decode("".join(chosen)))).convert("RGB")
    image.thumbnail((480, 480))
    image.save(path, optimize=True)


def name_source_of_tutorials(app: Any, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """The button that leads to a page's source leads to the notebook, which is not in docs/."""
    if context.get("page_source_suffix") == ".ipynb":
        context["theme_source_directory"] = ""


def write_formula(translator: Any, node: Any) -> None:
    """Formulas become MathML, which browsers show by themselves: without scripts, and without the network."""
    display = "block" if node.tagname == "math_block" else "inline"
    translator.body.append(convert(node.astext(), display=display))
    raise SkipNode


def put_into_napoleons_form(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Captum's ``Examples::`` and bulleted ``Returns:``, for which napoleon has other forms."""
    forms = {"Examples::": "Examples:", "Returns:": ":returns:"}
    lines[:] = [forms.get(line, line) for line in lines]


def find_public_name(app: Any, env: Any, node: Any, contnode: Any) -> Any:
    """A bare name of the package, from wherever it is mentioned."""
    if node.get("refdomain") != "py":
        return None
    domain = env.get_domain("py")
    for module in (
        "captum_boundary",
        "captum_boundary.attr",
        "captum_boundary.datasets",
        "captum_boundary.errors",
        "captum_boundary.layers",
        "captum_boundary.metrics",
        "captum_boundary.robust",
        "captum_boundary.search",
        "captum_boundary.smoothing",
        "captum_boundary.visualization",
    ):
        name = f"{module}.{node['reftarget']}"
        if name in domain.objects:
            return domain.resolve_xref(env, node["refdoc"], app.builder, node["reftype"], name, node, contnode)
    return None


def setup(app: Any) -> None:
    """Connect the functions above."""
    app.add_html_math_renderer("mathml", (write_formula, None), (write_formula, None))
    app.connect("builder-inited", draw_figures)
    app.connect("builder-inited", copy_tutorials)
    app.connect("html-page-context", name_source_of_tutorials)
    app.connect("autodoc-process-docstring", put_into_napoleons_form, priority=100)
    app.connect("missing-reference", find_public_name)
