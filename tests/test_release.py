"""What a release needs to agree with: one version, a dated changelog, complete metadata."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

import captum_boundary

ROOT = Path(__file__).parents[1]


def test_the_changelog_dates_this_version():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = re.findall(r"^## \[(.*?)\] - \d{4}-\d{2}-\d{2}$", text, flags=re.MULTILINE)
    assert versions[0] == captum_boundary.__version__


def test_the_citation_is_of_this_version():
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(r"^version: (.*)$", text, flags=re.MULTILINE).group(1) == captum_boundary.__version__
    assert re.search(r"^date-released: \d{4}-\d{2}-\d{2}$", text, flags=re.MULTILINE)


def test_metadata_is_complete():
    about = metadata.metadata("captum-boundary")
    assert about["Version"] == captum_boundary.__version__
    assert about["License-Expression"] == "BSD-3-Clause"
    urls = {entry.partition(",")[0] for entry in about.get_all("Project-URL")}
    assert {"Homepage", "Documentation", "Changelog", "Issues"} <= urls
