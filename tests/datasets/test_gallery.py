"""The gallery, as files and as a page in a browser."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from captum.attr import Saliency
from PIL import Image
from small_data import N_CLASSES, Rows, contents, small_model
from torch import nn

from captum_boundary import BoundaryIntegratedGradients, BoundarySaliency, NearestBoundary
from captum_boundary.datasets import ExampleError, FolderError, explain_dataset, write_gallery
from captum_boundary.datasets._pictures import picture
from captum_boundary.datasets._summary import summarise

N_EXAMPLES = 130


class Pictures:
    """Small images of three classes, one of which cannot be read."""

    classes = ("circle", "<b>square</b>", "line & dot")

    def __init__(self, n_examples: int = N_EXAMPLES) -> None:
        generator = torch.Generator().manual_seed(4)
        self.images = torch.rand(n_examples, 3, 6, 6, generator=generator)
        self.labels = torch.randint(N_CLASSES, (n_examples,), generator=generator)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        if index == 7:
            raise OSError("<i>truncated</i> file")
        return self.images[index], int(self.labels[index])


def model_of_pictures() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(108, 16), nn.Tanh(), nn.Linear(16, N_CLASSES)).eval()


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("gallery") / "tiny pictures"
    model = model_of_pictures()
    search = NearestBoundary(model, bounds=(0, 1), budget=10, max_distance=0.3)
    explain_dataset(BoundaryIntegratedGradients(model, search), Pictures(), folder, batch_size=50)
    write_gallery(folder, Pictures(), bounds=(0, 1))
    return folder


@pytest.fixture(scope="module")
def table(out):
    from captum_boundary.datasets import load_explanations

    return load_explanations(out).table().to_pandas()


@pytest.fixture
def page(browser, out):
    page = browser.new_page()
    problems = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text))
    page.on("request", lambda request: request.url.startswith("file:") or problems.append(request.url))
    page.goto((out / "gallery" / "index.html").as_uri())
    yield page
    page.close()
    # The browser says so where the one picture of the unreadable example is missing.
    assert [problem for problem in problems if "ERR_FILE_NOT_FOUND" not in problem] == []


def test_pictures_show_the_example_and_its_map():
    image = torch.tensor([[[0.0, 0.5], [1.0, 0.25]]])
    attributions = torch.tensor([[[1.0, -1.0], [0.0, 0.5]]])
    pixels = np.asarray(Image.open(io.BytesIO(picture(image, attributions, (0, 1), 10)))).astype(int)
    assert pixels.shape == (2, 4, 3)
    assert pixels[:, :2, 0].tolist() == [[0, 128], [255, 64]]
    red, blue = pixels[0, 2], pixels[0, 3]
    assert red[0] > red[2] + 100
    assert blue[2] > blue[0] + 100
    assert pixels[1, 2].tolist() == [247, 247, 247]


@pytest.mark.parametrize("bounds", [None, ((0 - 0.5) / 0.2, (1 - 0.5) / 0.2)])
def test_normalised_images_are_shown_between_their_extremes(bounds):
    image = (torch.tensor([[[0.0, 0.5], [1.0, 0.25]]]) - 0.5) / 0.2
    pixels = np.asarray(Image.open(io.BytesIO(picture(image, None, bounds, 10))))
    assert pixels[:, :2, 0].tolist() == [[0, 128], [255, 64]]
    assert (pixels[:, 2:] == 128).all()


def test_large_images_are_made_smaller():
    image = Image.open(io.BytesIO(picture(torch.rand(3, 300, 150), torch.randn(4, 2), None, 100)))
    assert image.size == (100, 100)


def test_the_summary_counts_what_is_in_the_table(out, table):
    from captum_boundary.datasets import load_explanations

    summary = summarise(load_explanations(out).table())
    good = table[table["error"].isna()]
    found = good[good["found"].astype(bool)]
    assert summary.n_examples == N_EXAMPLES
    assert summary.n_failed == 1
    assert summary.found == pytest.approx(len(found) / len(good))
    assert 0 < summary.found < 1
    assert summary.accuracy == pytest.approx((good["label"] == good["prediction"]).mean())
    assert summary.distance == pytest.approx(found["distance"].median())
    assert summary.evaluations == pytest.approx(good["evaluations"].mean())
    assert summary.least_certain == found.sort_values("distance")["index"].head(12).tolist()
    assert summary.most_certain == found.sort_values("distance")["index"].tolist()[::-1][:12]
    for each in summary.classes:
        of_class = found[found["target"] == each.target]
        assert each.n_found == len(of_class)
        assert each.n_examples == (good["target"] == each.target).sum()
        assert each.distances[2] == pytest.approx(of_class["distance"].median())
    for (target, other), count in summary.neighbours.items():
        assert count == ((found["target"] == target) & (found["adversarial"] == other)).sum()
    assert sum(summary.neighbours.values()) == len(found)


def test_the_page_escapes_what_it_shows(out):
    html = (out / "gallery" / "index.html").read_text()
    assert "<b>square" not in html
    assert "&lt;b&gt;square" in html
    assert "http" not in html


def test_writing_again_changes_nothing(out):
    before = contents(out)
    write_gallery(out, Pictures(), bounds=(0, 1))
    assert contents(out) == before


def test_the_first_view_is_the_summary(page):
    assert page.title() == "tiny pictures"
    assert page.is_visible("text=Distance to the boundary, by class")
    assert page.is_hidden("#grid")
    assert page.locator(".strip .card").count() == 24
    assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth === 12)")


def test_examples_come_in_pages(page, table):
    page.click("header >> text=Examples")
    assert page.inner_text("#count") == "130 of 130 examples, page 1 of 3"
    assert page.locator("#grid .card").count() == 48
    page.click("text=Last")
    assert page.inner_text("#count") == "130 of 130 examples, page 3 of 3"
    assert page.locator("#grid .card").count() == 130 - 96
    page.go_back()
    assert page.inner_text("#count").endswith("page 1 of 3")
    card = page.locator("#grid .card").first
    assert f"at {table['distance'][0]:.4g}" in card.inner_text()


def test_filters_and_orders(page, table):
    page.click("header >> text=Examples")
    page.select_option("select[name=target]", "1")
    page.select_option("select[name=sort]", "-distance")
    chosen = table[table["target"] == 1]
    assert page.inner_text("#count").startswith(f"{len(chosen)} of 130")
    first = page.locator("#grid .card").first.get_attribute("href")
    by_distance = chosen[chosen["found"].astype(bool)].sort_values("distance", ascending=False)
    assert f"row={by_distance['index'].iloc[0]}" in first
    page.select_option("select[name=target]", "")
    page.select_option("select[name=status]", "failed")
    assert page.inner_text("#count").startswith("1 of 130")
    page.select_option("select[name=status]", "wrong")
    wrong = table[table["error"].isna() & (table["label"] != table["prediction"])]
    assert page.inner_text("#count").startswith(f"{len(wrong)} of 130")
    page.click("button[type=reset]")
    assert page.inner_text("#count").startswith("130 of 130")


def test_a_cell_of_the_matrix_leads_to_its_examples(page, table):
    cell = page.locator(".matrix td a").first
    count = cell.inner_text()
    cell.click()
    assert page.inner_text("#count").startswith(f"{count} of 130")


def test_one_example_with_the_keyboard_alone(page, table):
    page.focus("header >> text=Examples")
    page.keyboard.press("Enter")
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#count").endswith("page 2 of 3")
    page.keyboard.press("ArrowLeft")
    page.locator("#grid .card").nth(5).focus()
    page.keyboard.press("Enter")
    assert page.inner_text("#example h2") == "Example 5"
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#example h2") == "Example 7"
    assert page.inner_text("#example dl").endswith("OSError: <i>truncated</i> file")
    page.keyboard.press("ArrowLeft")
    row = table.iloc[6]
    facts = dict(zip(*[iter(page.inner_text("#example dl").split("\n"))] * 2, strict=True))
    assert facts["Explained"] == Pictures.classes[int(row["target"])]
    assert facts["Margin"] == f"{row['margin']:.4g}"
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.dataset.row") == "6"


def test_every_step_of_the_keyboard_can_be_seen(page):
    page.keyboard.press("Tab")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable_in_light_and_dark(browser, out, scheme):
    page = browser.new_page(color_scheme=scheme)
    page.goto((out / "gallery" / "index.html").as_uri())
    colour = page.evaluate("[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]")
    ground = luminance(colour[1])
    assert (ground < 0.05) == (scheme == "dark")
    contrasts = page.evaluate("""() => [...document.querySelectorAll('a, dt, dd, small, strong, th, p, kbd')]
        .filter(element => element.checkVisibility()).map(element => {
            let ground = element;
            while (getComputedStyle(ground).backgroundColor === 'rgba(0, 0, 0, 0)') ground = ground.parentElement;
            return [getComputedStyle(element).color, getComputedStyle(ground).backgroundColor];
        }).filter(pair => pair.every(colour => colour.startsWith('rgb')))""")
    assert len(contrasts) > 50
    for pair in [colour, *contrasts]:
        first, second = sorted(map(luminance, pair))
        assert (second + 0.05) / (first + 0.05) >= 4.5, pair  # WCAG AA
    page.close()


def luminance(colour: str) -> float:
    channels = [int(part) / 255 for part in colour.strip("rgba()").split(",")[:3]]
    red, green, blue = (part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_a_small_window_needs_no_scrolling_to_the_side(browser, out):
    page = browser.new_page(viewport={"width": 390, "height": 800})
    for view in ("summary", "examples", "example?row=3"):
        page.goto((out / "gallery" / "index.html").as_uri() + f"#{view}")
        page.wait_for_timeout(100)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, view
    page.close()


def test_data_that_are_no_images(tmp_path, browser):
    explain_dataset(Saliency(small_model()), Rows(5), tmp_path, batch_size=2)
    page = browser.new_page()
    page.goto(write_gallery(tmp_path, Rows(5)).as_uri() + "#examples?sort=margin")
    assert page.locator("#grid .card").count() == 5
    assert page.locator("img").count() == 0
    assert "margin" in page.locator("#grid .card").first.inner_text()
    page.close()


def test_many_classes_are_listed_in_pairs(tmp_path):
    rows = Rows(60)
    model = small_model(n_outputs=40)
    rows.labels = model(rows.inputs).topk(40).indices[:, 7]
    explain_dataset(BoundarySaliency(model, NearestBoundary(model, budget=5)), rows, tmp_path, batch_size=60)
    html = write_gallery(tmp_path, rows).read_text()
    assert ('class="matrix"' in html) == (len(set(summary_classes(tmp_path))) <= 25)
    assert "What lies on the other side" in html


def summary_classes(folder):
    from captum_boundary.datasets import load_explanations

    table = load_explanations(folder).table()
    return table.column("target").to_pylist() + table.column("adversarial").to_pylist()


def test_what_cannot_be_shown(tmp_path):
    with pytest.raises(ExampleError):
        explain_dataset(Saliency(model_of_pictures()), Pictures(), tmp_path / "a", batch_size=4, strict=True)
    with pytest.raises(FolderError, match="is not complete: 126 of 130 examples are missing"):
        write_gallery(tmp_path / "a", Pictures())
    explain_dataset(Saliency(model_of_pictures()), Pictures(), tmp_path / "a", batch_size=4)
    for other in (Pictures(9), Rows(130)):
        with pytest.raises(FolderError, match="not those of this data set"):
            write_gallery(tmp_path / "a", other)


@pytest.mark.exhaustive
def test_fifty_thousand_examples(tmp_path, browser):
    class Many(Pictures):
        def __getitem__(self, index):
            return self.images[index], int(self.labels[index])

    model, data = model_of_pictures(), Many(50_000)
    explain_dataset(Saliency(model), data, tmp_path, batch_size=1000, dtype=torch.float16, options={"abs": False})
    start = time.monotonic()
    path = write_gallery(tmp_path, data, bounds=(0, 1))
    size = (path.parent / "data.js").stat().st_size
    print(f"\nwritten in {time.monotonic() - start:.0f} s, with {size / 1e6:.1f} MB of numbers")
    page = browser.new_page()
    for view in ("summary", "examples", "examples?sort=margin&page=900", "examples?target=1&sort=-margin"):
        page.goto("about:blank")
        start = time.monotonic()
        page.goto(path.as_uri() + f"#{view}")
        page.wait_for_function("[...document.images].filter(i => i.checkVisibility()).length >= 12")
        seconds = time.monotonic() - start
        print(f"{view}: {seconds:.2f} s")
        assert seconds < 5
    content = json.loads((path.parent / "data.js").read_text().removeprefix("window.GALLERY = ").rstrip(";\n"))
    assert len(content["columns"]["margin"]) == 50_000
    page.close()
