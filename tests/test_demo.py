"""The demonstration: what it prints and writes, and what it says where it cannot run."""

from __future__ import annotations

import importlib.util
from dataclasses import replace

import pytest
import torch

from captum_boundary.__main__ import main

pytest.importorskip("sklearn")

from captum_boundary._demo import digits, explanation, page, picture


@pytest.fixture(scope="module")
def explained():
    training, test = digits.load(seed=0)
    model = digits.train(training, epochs=5, seed=0)
    return model, test, explanation.explain(model, digits.choose(test, 3), budget=10)


def test_it_writes_a_picture_and_a_page_and_says_where(tmp_path, capsys):
    folder = tmp_path / "new" / "demo"
    before = torch.get_rng_state()
    assert main(["--output", str(folder), "--examples", "2", "--epochs", "2", "--budget", "8"]) == 0
    assert torch.equal(torch.get_rng_state(), before)
    printed = capsys.readouterr().out
    assert str(folder / "digits.png") in printed
    assert str(folder / "index.html") in printed
    lines = printed.splitlines()
    table = lines[next(i for i, line in enumerate(lines) if "distance" in line) :]
    assert len(table[1:3]) == 2
    assert all(len(line.split()) == len(explanation.HEADINGS) for line in table[1:3])
    assert (folder / "digits.png").read_bytes().startswith(b"\x89PNG")
    html = (folder / "index.html").read_text()
    assert html.count("<tr>") == 3
    assert "data:image/png;base64," in html
    sentence = next(line for line in lines if line.startswith("In words, of example 0: "))
    assert sentence.removeprefix("In words, of example 0: ") in html


def test_the_network_learns_and_all_points_are_found(explained):
    model, test, result = explained
    assert digits.accuracy(model, test) > 0.7
    assert result.boundary.found.all()
    assert (model(result.points).argmax(dim=1) == result.boundary.adversarial).all()
    assert (result.delta.abs() < 0.05 * result.margin.abs()).all()
    assert all(values.isfinite().all() and values.abs().max() > 0 for values in result.maps.values())


def test_a_row_is_explained_in_a_sentence(explained):
    _, _, result = explained
    points = result.digits.images.clone()
    points[0, 0, 3:5, 3:5] += 0.3
    points[0, 0, 0, 7] -= 0.2
    points[1, 0, 7, 0] -= 0.5
    points[2] += 0.25
    found = torch.tensor([True, True, False])
    boundary = replace(result.boundary, points=points, found=found, adversarial=torch.tensor([6, 4, -1]))
    first, second, third = replace(result, boundary=boundary).sentences()
    seen = result.boundary.target.tolist()
    assert first == (
        f"Brightening the center and darkening the upper right, by at most 0.30 a pixel, turns this {seen[0]} into a 6."
    )
    assert second == f"Darkening the lower left, by at most 0.50 a pixel, turns this {seen[1]} into a 4."
    assert third == f"Nothing was found that turns this {seen[2]} into another digit."


def test_the_picture_gives_units_and_tells_changes_from_attributions(explained):
    _, _, result = explained
    figure = picture.draw(result)
    panels = [axes for axes in figure.axes if axes.get_label() != "legend"]
    by_title = {axes.get_title(): axes for axes in panels if axes.get_title()}
    assert all(by_title[name].get_xlabel().split(" ", 1)[1].startswith("logits") for name in result.maps)
    assert by_title["change"].images[0].get_cmap() != by_title["BIG"].images[0].get_cmap()
    assert not any("±" in axes.get_xlabel() for axes in panels)


def test_the_picture_has_a_panel_for_everything(explained):
    _, _, result = explained
    panels = [axes for axes in picture.draw(result).axes if axes.get_label() != "legend"]
    assert len(panels) == 3 * 9
    titles = {axes.get_title() for axes in panels} - {""}
    assert titles == {"input", "boundary point", "change", *result.maps}
    for name, values in result.maps.items():
        first = next(axes for axes in panels if axes.get_title() == name)
        assert torch.equal(torch.as_tensor(first.images[0].get_array().data), values[0, 0])


def test_the_page_escapes_what_it_shows():
    text = page.page(b"", [("<script>",) * len(explanation.HEADINGS)], ["<script>"], accuracy=0.5)
    assert "<script>" not in text
    assert "&lt;script&gt;" in text
    assert "50.0%" in text


def test_the_same_seed_trains_the_same_network(explained):
    model, _, _ = explained
    again = digits.train(digits.load(seed=0)[0], epochs=5, seed=0)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_a_missing_package_is_named(monkeypatch, capsys):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "sklearn" else find_spec(name))
    assert main([]) == 1
    assert 'needs scikit-learn: pip install "captum-boundary[demo]"' in capsys.readouterr().err


def test_numbers_must_be_positive(capsys):
    with pytest.raises(SystemExit):
        main(["--examples", "0"])
    assert "must be at least 1, but it is 0" in capsys.readouterr().err
