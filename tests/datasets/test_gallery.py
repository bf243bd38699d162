"""The gallery, as files and as a page in a browser."""

from __future__ import annotations

import io
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
from captum_boundary.datasets import (
    ExampleError,
    ExampleWarning,
    FolderError,
    explain_dataset,
    load_explanations,
    write_gallery,
)
from captum_boundary.datasets.gallery import picture, summarize
from captum_boundary.errors import BoundaryValueError

N_EXAMPLES = 130
failing = pytest.mark.filterwarnings("ignore::captum_boundary.datasets.ExampleWarning")


class Pictures:
    """Small images of three classes, one of which cannot be read."""

    units = "pixels of [0, 1]"
    classes = ("circle", "<b>square</b>", "line & dot")

    def __init__(self, n_examples: int = N_EXAMPLES) -> None:
        generator = torch.Generator().manual_seed(4)
        self.images = torch.rand(n_examples, 3, 6, 6, generator=generator)
        self.labels = torch.randint(N_CLASSES, (n_examples,), generator=generator)
        self.samples = [(f"photographs/<i>{index}</i>.png", None) for index in range(n_examples)]

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
    with pytest.warns(ExampleWarning, match="1 of 130 examples"):
        explain_dataset(BoundaryIntegratedGradients(model, search), Pictures(), folder, batch_size=50)
    write_gallery(folder, Pictures(), bounds=(0, 1))
    return folder


@pytest.fixture(scope="module")
def table(out):
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
    assert problems == []


def test_pictures_show_the_example_and_its_map():
    image = torch.tensor([[[0.0, 0.5], [1.0, 0.25]]])
    attributions = torch.tensor([[[1.0, -1.0], [0.0, 0.5]]])
    pixels = np.asarray(Image.open(io.BytesIO(picture(image, attributions, (0, 1), 10)))).astype(int)
    assert pixels.shape == (2, 4, 3)
    assert pixels[:, :2, 0].tolist() == [[0, 128], [255, 64]]
    assert pixels[0, 2].tolist() == [0, 128, 0]  # Captum's colors: positive is green
    assert pixels[0, 3].tolist() == [255, 0, 0]
    assert pixels[1, 2].tolist() == [255, 255, 255]
    assert pixels[1, 3].tolist() == [128, 192, 128]


def test_few_outliers_take_no_color_from_the_others():
    """1 of 400 pixels is left out of the scale, and 20 are not."""

    def colors(n_outliers: int, size: float) -> int:
        values = torch.ones(400)
        values[:n_outliers] = size
        pixels = picture(torch.zeros(1, 20, 20), values.view(20, 20), (0, 1), 20)
        return int(np.asarray(Image.open(io.BytesIO(pixels)))[19, 39, 0])  # red, of which positive values take away

    assert colors(1, 100.0) == 0
    assert colors(20, 2.0) == 128


@pytest.mark.parametrize("bounds", [None, ((0 - 0.5) / 0.2, (1 - 0.5) / 0.2)])
def test_normalized_images_are_shown_between_their_extremes(bounds):
    image = (torch.tensor([[[0.0, 0.5], [1.0, 0.25]]]) - 0.5) / 0.2
    pixels = np.asarray(Image.open(io.BytesIO(picture(image, None, bounds, 10))))
    assert pixels[:, :2, 0].tolist() == [[0, 128], [255, 64]]
    assert (pixels[:, 2:] == 128).all()


def test_large_images_are_made_smaller():
    image = Image.open(io.BytesIO(picture(torch.rand(3, 300, 150), torch.randn(4, 2), None, 100)))
    assert image.size == (100, 100)


def test_the_summary_counts_what_is_in_the_table(out, table):
    summary = summarize(load_explanations(out).table())
    good = table[table["error"].isna()]
    found = good[good["found"].astype(bool)]
    assert summary["n_examples"] == N_EXAMPLES
    assert summary["n_failed"] == 1
    assert summary["found"] == pytest.approx(len(found) / len(good))
    assert 0 < summary["found"] < 1
    assert summary["accuracy"] == pytest.approx((good["label"] == good["prediction"]).mean())
    assert summary["distance"] == pytest.approx(found["distance"].median())
    assert summary["evaluations"] == pytest.approx(good["evaluations"].mean())
    assert summary["least_certain"] == found.sort_values("distance")["index"].head(12).tolist()
    assert summary["most_certain"] == found.sort_values("distance")["index"].tolist()[::-1][:12]
    for each in summary["classes"]:
        of_class = found[found["target"] == each["target"]]
        assert each["found"] == len(of_class)
        assert each["n"] == (good["target"] == each["target"]).sum()
        wanted = of_class["distance"].quantile([0.1, 0.25, 0.5, 0.75, 0.9])
        assert each["distances"] == pytest.approx(wanted.tolist())
    for (target, other), count in summary["neighbors"].items():
        assert count == ((found["target"] == target) & (found["adversarial"] == other)).sum()
    assert sum(summary["neighbors"].values()) == len(found)


def test_the_page_escapes_what_it_shows(out):
    html = (out / "gallery" / "index.html").read_text()
    assert "<b>square" not in html
    assert "&lt;b&gt;square" in html
    assert "http" not in html
    assert "<i>truncated" not in html


def test_writing_again_changes_nothing(out):
    before = contents(out)
    write_gallery(out, Pictures(), bounds=(0, 1))
    assert contents(out) == before


def test_the_first_view_is_the_summary(page):
    assert page.title() == "tiny pictures"
    assert page.is_visible("text=Distance to the boundary, by class")
    assert page.is_hidden("#grid")
    assert page.locator("[data-rows] .card").count() == 24
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
    assert f"l2 distance {table['distance'][0]:.4g} in pixels of [0, 1]" in card.inner_text()
    assert "photographs/<i>0</i>.png" in card.inner_text()


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
    assert page.locator("#example img").count() == 0
    page.keyboard.press("ArrowLeft")
    row = table.iloc[6]
    facts = dict(zip(*[iter(page.inner_text("#example dl").split("\n"))] * 2, strict=True))
    assert facts["Explained"] == Pictures.classes[int(row["target"])]
    assert facts["Margin"] == f"{row['margin']:.4g}"
    assert facts["File"] == "photographs/<i>6</i>.png"
    assert facts["Distance"] == f"l2 distance {row['distance']:.4g} in pixels of [0, 1]"
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.dataset.row") == "6"


def test_every_step_of_the_keyboard_can_be_seen(page):
    page.keyboard.press("Tab")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable_in_light_and_dark(browser, out, scheme):
    page = browser.new_page(color_scheme=scheme)
    page.goto((out / "gallery" / "index.html").as_uri())
    color = page.evaluate("[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]")
    ground = luminance(color[1])
    assert (ground < 0.05) == (scheme == "dark")
    contrasts = page.evaluate("""() => [...document.querySelectorAll('a, dt, dd, small, strong, th, p, kbd')]
        .filter(element => element.checkVisibility()).map(element => {
            let ground = element;
            while (getComputedStyle(ground).backgroundColor === 'rgba(0, 0, 0, 0)') ground = ground.parentElement;
            return [getComputedStyle(element).color, getComputedStyle(ground).backgroundColor];
        }).filter(pair => pair.every(color => color.startsWith('rgb')))""")
    assert len(contrasts) > 50
    for pair in [color, *contrasts]:
        first, second = sorted(map(luminance, pair))
        assert (second + 0.05) / (first + 0.05) >= 4.5, pair  # WCAG AA
    page.close()


def luminance(color: str) -> float:
    channels = [int(part) / 255 for part in color.strip("rgba()").split(",")[:3]]
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
    assert "The class on the other side" in html


def summary_classes(folder):
    table = load_explanations(folder).table()
    return table.column("target").to_pylist() + table.column("adversarial").to_pylist()


@failing
def test_what_cannot_be_shown(tmp_path):
    with pytest.raises(ExampleError):
        explain_dataset(Saliency(model_of_pictures()), Pictures(), tmp_path / "a", batch_size=4, strict=True)
    with pytest.raises(FolderError, match="is not complete: 126 of 130 examples are missing"):
        write_gallery(tmp_path / "a", Pictures())
    explain_dataset(Saliency(model_of_pictures()), Pictures(), tmp_path / "a", batch_size=4)
    with pytest.raises(BoundaryValueError, match="lower <= upper"):
        write_gallery(tmp_path / "a", Pictures(), bounds=(1, 0))
    for other in (Pictures(9), Rows(130)):
        with pytest.raises(FolderError, match="not those of this data set"):
            write_gallery(tmp_path / "a", other)


def pictures(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.webp")}


def test_pictures_are_made_again_where_what_they_show_has_changed(tmp_path):
    data = [image * 0.5 for image in Pictures(6).images]
    saliency = Saliency(model_of_pictures())
    explain_dataset(saliency, data, tmp_path, batch_size=3)
    write_gallery(tmp_path, data, bounds=(0, 1))
    first = pictures(tmp_path)
    write_gallery(tmp_path, data, bounds=(0, 1))
    assert pictures(tmp_path) == first
    for changes in ({"bounds": (0, 2)}, {"bounds": (0, 1), "image_size": 3}):
        write_gallery(tmp_path, data, **changes)
        other = pictures(tmp_path)
        assert len(other) == 6
        assert not set(other) & set(first)
        assert not set(other.values()) & set(first.values())
    write_gallery(tmp_path, data, bounds=(0, 1))
    assert pictures(tmp_path) == first


@failing
def test_a_picture_is_made_where_an_example_could_not_be_read_before(tmp_path):
    class Flaky(Pictures):
        broken = True

        def __getitem__(self, index):
            if index == 4 and self.broken:
                raise OSError("the network drive is away")
            return self.images[index]

    data, saliency = Flaky(6), Saliency(model_of_pictures())
    explain_dataset(saliency, data, tmp_path, batch_size=3)
    write_gallery(tmp_path, data)
    assert len(pictures(tmp_path)) == 5
    data.broken = False
    (tmp_path / "rows" / "0000" / "000000003.parquet").unlink()
    explain_dataset(saliency, data, tmp_path, batch_size=3)
    before = pictures(tmp_path)
    write_gallery(tmp_path, data)
    assert len(pictures(tmp_path)) == 6
    assert len(set(pictures(tmp_path)) & set(before)) == 3  # those of the other batch


class Hostile(Pictures):
    """Examples that would break a page, each in its own way."""

    classes = ("</script><script>fail()</script>", "{{ 7 * 7 }}${fail()}", "\udce9 \u2028 '\"")

    def __init__(self):
        super().__init__(6)
        self.samples = [(f"</script>{{{{ x }}}}<!-- \udcff '{index}", None) for index in range(6)]

    def __getitem__(self, index):
        if index == 1:
            raise OSError("</script><script>fail()</script> \udce9 <!--")
        if index == 2:
            return self.images[index] * float("nan"), 0
        if index == 3:
            return self.images[index] + 5, 0  # outside of bounds
        if index == 4:
            return self.images[index][:1], 2**62 + 1
        return self.images[index], int(self.labels[index])


@failing
def test_no_example_can_break_the_page(tmp_path, browser):
    model = model_of_pictures()
    explainer = BoundarySaliency(model, NearestBoundary(model, bounds=(0, 1), budget=5))
    explanations = explain_dataset(explainer, Hostile(), tmp_path, batch_size=4)
    errors = explanations.table(["error"]).column("error").to_pylist()
    assert [error is not None for error in errors] == [False, True, True, True, True, False]
    page = browser.new_page()
    problems = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text))
    address = write_gallery(tmp_path, Hostile(), bounds=(0, 1), title="</title>{{ x }}").as_uri()
    for view in (
        "",
        "#examples",
        *(f"#example?row={row}" for row in range(6)),
        "#example?row=x",
        "#toString",
        "#example?row=99",
    ):
        page.goto("about:blank")
        page.goto(address + view)
        assert page.title() == "</title>{{ x }}"
        assert page.locator("section:visible").count() == 1
    page.goto(address + "#example?row=1")
    assert "</script><script>fail()</script> \\udce9 <!--" in page.inner_text("#example dl")
    assert "</script>{{ x }}<!-- \\udcff '1" in page.inner_text("#example dl")
    page.goto(address + "#examples?sort=__proto__&status=constructor&target=x")
    page.goto(address + "#examples?status=failed")
    assert page.inner_text("#count").startswith("4 of 6")
    page.close()
    assert [problem for problem in problems if "ERR_FILE_NOT_FOUND" not in problem] == []


@pytest.mark.exhaustive
def test_fifty_thousand_examples(tmp_path, browser):
    class Many(Pictures):
        def __getitem__(self, index):
            return self.images[index], int(self.labels[index])

    model, data = model_of_pictures(), Many(50_000)
    explain_dataset(Saliency(model), data, tmp_path, batch_size=1000, dtype=torch.float16, options={"abs": False})
    start = time.monotonic()
    path = write_gallery(tmp_path, data, bounds=(0, 1))
    size = path.stat().st_size
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
    assert page.evaluate("GALLERY.columns.margin.length") == 50_000
    page.close()
