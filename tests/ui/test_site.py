"""The book in a browser, from files and with no network: from a number to its run, and all runs."""

import os
import subprocess
import sys

import pytest

from helpers.paths import root

WIDTHS = {"phone": 390, "desktop": 1280}
PAGES = (
    *("index", "README", "results", "runs", "plans/full", "runs/full"),
    *(
        "runs/full/04_prune_model--admm-grad-60",
        "runs/full/02_admm_layer_solve--default",
    ),
)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The address of the book, built of the committed results."""
    results = tmp_path_factory.mktemp("results")
    environment = os.environ | {"PRUNING_RESULTS": str(results)}
    command = [sys.executable, "-m", "book"]
    subprocess.run(command, cwd=root(), env=environment, check=True)
    return (results / "book").as_uri()


@pytest.fixture(scope="module", params=WIDTHS)
def width(request):
    return WIDTHS[request.param]


@pytest.fixture(scope="module", params=["light", "dark"])
def page(request, watched, width, site):
    """A tab of a width, for readers whose system is light or dark."""
    page = watched.page()
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme=request.param)
    yield page
    page.close()
    assert watched.errors == []


@pytest.mark.parametrize("name", PAGES)
def test_no_page_is_wider_than_the_window(page, site, name, width):
    page.goto(f"{site}/{name}.html")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_figure_is_in_sight_as_a_whole(page, site, width):
    page.goto(f"{site}/index.html")
    box = page.locator("article figure img").first.bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= width


def test_a_box_that_scrolls_fades_where_there_is_more(page, site, width):
    """At its right edge at first, at the left one at its end, and not at all where all fits."""
    page.goto(f"{site}/plans/full.html")
    fades = """box => ["--more-left", "--more-right"].map(
        name => parseFloat(getComputedStyle(box).getPropertyValue(name)) > 0)"""
    box = page.locator(".pst-scrollable-table-container").first
    scrolls = box.evaluate("box => box.scrollWidth > box.clientWidth")
    assert scrolls == (width == WIDTHS["phone"])
    assert box.evaluate(fades) == [False, scrolls]
    box.evaluate("""box => new Promise(done => {
        box.scrollLeft = box.scrollWidth;
        requestAnimationFrame(() => requestAnimationFrame(done));
    })""")
    assert box.evaluate(fades) == [scrolls, False]


def test_two_clicks_from_a_number_of_the_readme_to_its_run(page, site):
    page.goto(f"{site}/README.html")
    row = page.locator("article tr", has_text="ADMM-Grad").first
    number = row.get_by_role("link", name="±").first
    printed = number.inner_text()
    number.click()
    page.wait_for_url("**/runs/full.html#*")
    listed = page.locator(f"[id='{page.url.partition('#')[2]}']")
    assert f"ADMM-Grad, 60 %: {printed}" in listed.get_by_role("heading").inner_text()
    listed.get_by_role("link", name="seed 1").click()
    page.wait_for_url("**/runs/full/04_prune_model--admm-grad-60-seed1.html")
    line = "make reproduce PLAN=full ONLY=04_prune_model--admm-grad-60-seed1"
    assert line in page.locator("article").inner_text()


def test_runs_are_found_and_sorted(page, site):
    page.goto(f"{site}/runs.html")
    rows = page.locator("article tbody tr:visible")
    every = rows.count()
    page.get_by_label("Find").fill("full 60 SEED1")
    found = rows.all_inner_texts()
    assert 0 < len(found) < every
    assert all("60 %, seed 1" in text for text in found)
    for order in (1, -1):
        page.get_by_role("button", name="perplexity").click()
        numbers = rows.locator("td:nth-child(3)").all_inner_texts()
        values = [float(number.replace(",", "")) for number in numbers]
        assert values == sorted(values, reverse=order < 0)
    page.get_by_label("Find").fill("")
    assert rows.count() == every
    assert rows.last.locator("td").nth(2).inner_text() == "–"
    rows.first.get_by_role("link").click()
    page.wait_for_url("**/runs/*/*.html")
