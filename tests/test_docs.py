"""What the site shows must run, and must show all there is."""

from __future__ import annotations

import contextlib
import doctest
import importlib
import inspect
import io
import re
import textwrap
from enum import Enum
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md") if not {"_build", "_generated"} & set(path.parts))
FENCE = re.compile(
    r"^(?P<indent> *)```(?P<kind>[^\n]*)\n(?: *:hide:\n+)?(?P<body>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL
)
RUN = ("{testsetup}", "{testcode}", "{testcleanup}")
# Pages on packages that the rest of the tests can do without.
NEEDED = {
    "howto/trainers.md": ("accelerate", "lightning"),
    "howto/language_models.md": ("transformers",),
    "howto/vision_transformers.md": ("torchvision", "transformers"),
}
NOT_MADE_BY_USERS = ("captum_boundary.search.SearchProblem", "captum_boundary.search.Norm")
NOT_CODE = ("{image}", "{include}", "{testoutput}", "{toctree}", "console", "bibtex")


def blocks(page: Path) -> list[tuple[str, str]]:
    text = page.read_text(encoding="utf-8")
    return [(match["kind"], textwrap.dedent(match["body"])) for match in FENCE.finditer(text)]


def page_id(page: Path) -> str:
    return str(page.relative_to(DOCS))


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_block_of_code_is_run(page) -> None:
    kinds = {kind.split()[0] if kind else "" for kind, _ in blocks(page)}
    assert kinds <= {*RUN, *NOT_CODE}, f"Python goes into {{testcode}}, commands into console; not into {kinds}"


@pytest.mark.parametrize("page", [page for page in PAGES if any(kind in RUN for kind, _ in blocks(page))], ids=page_id)
@pytest.mark.filterwarnings("ignore:Setting forward, backward hooks", "ignore:.*urllib3:Warning")
def test_code_prints_what_the_page_shows(page, monkeypatch) -> None:
    monkeypatch.chdir(ROOT)
    for package in NEEDED.get(page_id(page), ()):
        pytest.importorskip(package)
    names: dict[str, object] = {"torch": torch, "nn": torch.nn}
    printed = ""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        # As Sphinx runs them, all setup before all else. The sort is stable.
        for kind, body in sorted(blocks(page), key=lambda block: block[0] != "{testsetup}"):
            if kind in RUN:
                assert not printed, f"the page does not show what was printed before\n{body}"
                with contextlib.redirect_stdout(io.StringIO()) as output:
                    exec(body, names)
                printed = output.getvalue()
            elif kind == "{testoutput}":
                assert doctest.OutputChecker().check_output(body, printed, doctest.ELLIPSIS), printed
                printed = ""
    assert not printed


def modules() -> list[str]:
    """The package and its public parts."""
    parts = [path.parent.name for path in (ROOT / "captum_boundary").glob("[!_]*/__init__.py")]
    return ["captum_boundary", *(f"captum_boundary.{part}" for part in parts)]


def public() -> dict[str, object]:
    """All that users can name, each object once, by the shortest of its names."""
    found: dict[int, tuple[str, object]] = {}
    for module in modules():
        for name in importlib.import_module(module).__all__:
            value = getattr(importlib.import_module(module), name)
            if not inspect.ismodule(value):
                found.setdefault(id(value), (f"{module}.{name}", value))
    return dict(found.values())


def listed() -> set[int]:
    """What the pages of the API reference list."""
    found = set()
    for page in (DOCS / "reference").glob("*.rst"):
        module = importlib.import_module("captum_boundary")
        for line in page.read_text(encoding="utf-8").splitlines():
            if current := re.match(r"\.\. currentmodule:: (\S+)", line):
                module = importlib.import_module(current[1])
            elif name := re.fullmatch(r"   (\w+)", line):
                found.add(id(getattr(module, name[1], None)))
    return found


def test_the_reference_lists_every_public_name() -> None:
    there = listed()
    missing = [name for name, value in public().items() if id(value) not in there]
    assert not missing, f"add to a list of docs/reference: {', '.join(missing)}"


@pytest.mark.parametrize("module", modules()[1:])
def test_the_reference_has_a_page_for_every_module(module) -> None:
    pages = [path.read_text(encoding="utf-8") for path in (DOCS / "reference").glob("*.rst")]
    assert sum(f".. module:: {module}\n" in page for page in pages) == 1


@pytest.mark.parametrize(("name", "value"), public().items(), ids=public())
def test_every_public_name_is_explained(name, value) -> None:
    text = inspect.getdoc(value)
    assert text, f"{name} has no docstring"
    if inspect.isclass(value) and issubclass(value, (Exception, Warning)):
        return
    if inspect.isclass(value) and issubclass(value, Enum):
        assert "Examples::" in text
        return
    if hasattr(value, "__dataclass_fields__") or hasattr(value, "_fields") or name in NOT_MADE_BY_USERS:
        assert "Attributes:" in text
        return
    assert "Args:" in text
    for parameter in inspect.signature(value).parameters:
        assert re.search(rf"^    \**{parameter} \(", text, re.MULTILINE), f"{name} says nothing of {parameter}"
    if inspect.isfunction(value):
        assert re.search(r"^Returns:", text, re.MULTILINE)
    if not inspect.isabstract(value):
        assert "Examples::" in text


def test_searches_in_the_readme_have_the_numbers_of_the_benchmark() -> None:
    section = (DOCS / "benchmarks" / "search.md").read_text(encoding="utf-8").split("\n## ")[1]
    measured = set(re.findall(r"^\| .*\d \|$", section, re.MULTILINE))
    assert len(measured) >= 8
    searches = re.compile(r"^\| (?:`NearestBoundary`, budget|Foolbox|the paper's pipeline).*\d \|$", re.MULTILINE)
    assert set(searches.findall((ROOT / "README.md").read_text(encoding="utf-8"))) <= measured


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_rows_of_tables_have_as_many_cells_as_their_heads(page) -> None:
    for table in re.findall(r"(?:^\|.*\n)+", page.read_text(encoding="utf-8"), re.MULTILINE):
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(widths) == 1, table


def test_an_example_with_a_resnet_is_two_clicks_from_the_front_page_at_most() -> None:
    front = (DOCS / "index.md").read_text(encoding="utf-8")
    assert "resnet50(weights=" in front
    assert "(tutorials/02_imagenet_model.ipynb)" in front
    assert "ResNet" in (ROOT / "tutorials" / "02_imagenet_model.ipynb").read_text(encoding="utf-8")


def test_figures_of_the_guides_are_made_by_scripts_or_stored_and_have_captions() -> None:
    image = re.compile(r"```\{image\} \.\./(_generated|images)/(\w+)\.(svg|png)\n:alt: (.+)\n(?::.+\n)*```\n")
    found = [
        (page, match) for page in PAGES if page.parent.name == "howto" for match in image.finditer(page.read_text())
    ]
    assert len(found) >= 12
    for page, match in found:
        folder, name, kind, alt = match.groups()
        source = DOCS / "figures" / f"{name}.py" if folder == "_generated" else DOCS / "images" / f"{name}.{kind}"
        assert source.is_file(), f"{page_id(page)} shows {name}, which nothing makes"
        assert len(alt.split()) >= 4


def test_every_script_of_a_figure_is_shown() -> None:
    shown = set(re.findall(r"_generated/(\w+)\.svg", "".join(page.read_text(encoding="utf-8") for page in PAGES)))
    assert shown == {script.stem for script in (DOCS / "figures").glob("[!_]*.py")}
