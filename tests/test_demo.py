"""The demonstration: what it prints and writes, and what it says where it cannot run."""

from __future__ import annotations

import importlib.util

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


def test_the_network_learns_and_all_points_are_found(explained):
    model, test, result = explained
    assert digits.accuracy(model, test) > 0.7
    assert result.boundary.found.all()
    assert (model(result.points).argmax(dim=1) == result.boundary.adversarial).all()
    assert (result.delta.abs() < 0.05 * result.margin.abs()).all()
    assert all(values.isfinite().all() and values.abs().max() > 0 for values in result.maps.values())


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
    text = page.page(b"", [("<script>",) * len(explanation.HEADINGS)], accuracy=0.5)
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
