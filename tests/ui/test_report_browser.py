"""The report in a browser: widths, light and dark, keyboard, paper, and no request to anywhere.

Needs playwright, axe-playwright-python (the extra "ui") and Chromium; skipped without them.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest

from helpers import report
from helpers.paths import reference_dir
from helpers.plan import read_plan
from helpers.records import read_records

pytest.importorskip("playwright", reason="playwright is not installed: run make test-ui")
axe_api = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is missing")

WIDTHS = (360, 768, 1440)
SCHEMES = ("light", "dark")
CONTRAST = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]
NOTEBOOK = "04_prune_model--admm-grad-60"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Reports: "full" of the committed records, "laptop" as if its records were made here."""
    made = {}
    for plan in ("full", "laptop"):
        folder = tmp_path_factory.mktemp(plan)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PRUNING_RESULTS", str(folder))
            if plan == "laptop":
                shutil.copytree(reference_dir(plan) / "records", folder / plan / "records")
                write_notebook(folder / plan / "runs" / f"{NOTEBOOK}.ipynb")
            made[plan] = report.write_report(plan, lambda line: None)
    return made


def write_notebook(path: Path) -> None:
    """A notebook with an image from elsewhere, a script and a wide table."""
    table = "<table><tr><th></th>" + "<th>column</th>" * 40 + "</tr></table>"
    remote = '<img src="https://x.example/a.png"><script src="https://x.example/a.js"></script>'
    output = nbformat.v4.new_output("display_data", {"text/html": table + remote})
    grid = "\n".join("|" + cell * 60 for cell in (" word |", " -- |", " 1 |"))
    wide = f"\n    {'code ' * 60}\n\n{grid}\n\n$$ {'x + ' * 60} y $$"
    cells = [
        nbformat.v4.new_markdown_cell(f"# A question?\n![badge](https://x.example/b.svg)\n{wide}"),
        nbformat.v4.new_code_cell("x = 1  # " + "long " * 60, outputs=[output], execution_count=1),
    ]
    path.parent.mkdir(parents=True)
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)


class View:
    """A page in a window of its own, with all that it asked for and complained of."""

    def __init__(self, browser: Any, path: Path, **options: Any) -> None:
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.refused: dict[str, str | None] = {}  # what the page's own policy did not let out
        self.page.on("requestfailed", lambda one: self.refused.update({one.url: one.failure}))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(path.as_uri())

    def column(self, ident: str, name: str) -> list[str]:
        """The texts of a column of a table, as shown."""
        return self.page.evaluate(
            """([ident, name]) => {
              const table = document.getElementById(ident);
              const heads = [...table.tHead.rows[0].cells].map((cell) => cell.textContent.trim());
              const place = heads.indexOf(name);
              return [...table.tBodies[0].rows].map((row) => row.cells[place].textContent);
            }""",
            [ident, name],
        )

    def sort_of(self, ident: str, name: str) -> str:
        """aria-sort of a column."""
        return self.head(ident, name).evaluate("node => node.closest('th').ariaSort")

    def head(self, ident: str, name: str) -> Any:
        """The button in the head of a column."""
        return self.page.locator(f"#{ident}").get_by_role("button", name=name, exact=True)


@pytest.fixture
def view(browser: Any, files: dict[str, Path]) -> Iterator[Any]:
    """`view("full", width=360, color_scheme="dark")` opens a report."""
    opened: list[View] = []

    def open_one(plan: str, *, width: int = 1440, path: Path | None = None, **more: Any) -> View:
        size = {"width": width, "height": 900}
        opened.append(View(browser, path or files[plan], viewport=size, **more))
        return opened[-1]

    yield open_one
    for one in opened:
        one.context.close()


def overflow(page: Any) -> float:
    """How many pixels wider than the window the page is."""
    return page.evaluate(
        "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    )


# --- what any reader meets -----------------------------------------------------------------------


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_fits_and_asks_nobody(view: Any, width: int, scheme: str) -> None:
    for plan in ("full", "laptop"):
        shown = view(plan, width=width, color_scheme=scheme)
        shown.page.mouse.wheel(0, 50_000)
        assert overflow(shown.page) <= 0
        assert shown.complaints == []
        assert len(shown.requests) == 1 and shown.requests[0].startswith("file://")
        boxes = shown.page.locator(".scroll").evaluate_all(
            "nodes => nodes.map((node) => [node.getBoundingClientRect().right, node.tabIndex,"
            " node.scrollWidth > node.clientWidth + 1])"
        )
        edges = [edge for edge, _, scrolls in boxes if edge > width or scrolls != (_ == 0)]
        assert boxes and not edges


@pytest.mark.parametrize(("width", "scheme"), [(360, "dark"), (1440, "light"), (1440, "dark")])
def test_accessible(view: Any, width: int, scheme: str) -> None:
    for plan in ("full", "laptop"):
        shown = view(plan, width=width, color_scheme=scheme)
        if plan == "laptop":
            shown.page.locator("details").evaluate_all(
                "all => all.forEach((d) => { d.open = true; })"
            )
        rules = {"runOnly": {"type": "tag", "values": CONTRAST}}
        found = axe_api.Axe().run(shown.page, options=rules).response["violations"]
        assert [
            (item["id"], item["impact"], item["nodes"][0]["html"][:200]) for item in found
        ] == []


def test_figures_are_dark_on_a_dark_page(view: Any) -> None:
    """The ink of a figure stands out from its card in both schemes."""
    for scheme in SCHEMES:
        page = view("laptop", color_scheme=scheme).page
        ink, card = page.locator("svg.chart").first.evaluate(
            "node => [getComputedStyle(node).fill, "
            "getComputedStyle(node.querySelector('path')).fill]"
        )
        light = [sum(map(int, colour[4:-1].split(","))) / 3 for colour in (ink, card)]
        assert (
            (light[0] < 60 and light[1] > 240)
            if scheme == "light"
            else (light[0] > 200 > 60 > light[1])
        )


def test_contents_lead_to_their_sections(view: Any) -> None:
    shown = view("full")
    for link in shown.page.get_by_role("navigation", name="Contents").get_by_role("link").all():
        link.click()
        ident = link.get_attribute("href")[1:]
        shown.page.wait_for_function(
            "id => { const top = document.getElementById(id).getBoundingClientRect().top;"
            " const end = scrollY + innerHeight >= document.documentElement.scrollHeight - 2;"
            " return Math.abs(top) < 40 || (end && top >= 0); }",
            arg=ident,
        )
    assert shown.page.locator("nav a[aria-current]").count() == 1


def test_first_tab_skips_to_the_content(view: Any) -> None:
    page = view("full").page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.keyboard.press("Enter")
    assert page.url.endswith("#main")


# --- tables --------------------------------------------------------------------------------------


def perplexities() -> dict[str, float]:
    """At 60 %, means over seeds, by method; the dense model's too."""
    values: dict[str, list[float]] = {}
    for record in read_records(reference_dir("full") / "records"):
        asked = record["parameters"]
        if record["notebook"] != "04_prune_model" or asked["options"]:
            continue
        cell = (asked["sparsity"], asked["pattern"])
        if asked["method"] == "dense" or cell == (0.6, "unstructured"):
            metric = record["metrics"]["perplexity"]["value"]
            values.setdefault(asked["method"], []).append(metric)
    return {method: sum(found) / len(found) for method, found in values.items()}


def test_sort_by_mouse(view: Any) -> None:
    """Numbers with commas, spreads and exponents sort as numbers; a third click undoes it."""
    shown, wanted = view("full"), perplexities()
    ident = "table-perplexity-1"
    first = shown.column(ident, "method")
    for direction in ("ascending", "descending"):
        shown.head(ident, "60 %").click()
        assert shown.sort_of(ident, "60 %") == direction
        expected = sorted(wanted, key=wanted.get, reverse=direction == "descending")
        assert shown.column(ident, "method") == expected
    shown.head(ident, "60 %").click()
    assert shown.sort_of(ident, "60 %") == "none" and shown.column(ident, "method") == first
    shown.head(ident, "80 %").click()
    assert shown.column(ident, "80 %")[-1] == "4.1e+06"


def test_missing_cells_stay_last(view: Any) -> None:
    shown = view("full")
    for direction in ("ascending", "descending"):
        shown.head("table-cost-1", "forward (s)").click()
        texts = shown.column("table-cost-1", "forward (s)")
        numbers = [float(text) for text in texts if text != "–"]
        assert texts[-1] == "–" and "–" not in texts[: len(numbers)]
        assert numbers == sorted(numbers, reverse=direction == "descending")


def test_text_cells_with_spreads_sort_as_numbers(view: Any) -> None:
    shown, ident = view("full"), "table-zero-shot-3"
    shown.head(ident, "BoolQ").click()
    numbers = [float(text.split()[0]) for text in shown.column(ident, "BoolQ")]
    assert len(numbers) == 6 and numbers == sorted(numbers)


def test_sort_by_keyboard(view: Any) -> None:
    shown, wanted = view("full", width=360), perplexities()
    head = shown.head("table-perplexity-1", "60 %")
    head.focus()
    assert head.evaluate("node => getComputedStyle(node).outlineStyle") == "solid"
    shown.page.keyboard.press("Enter")
    assert shown.column("table-perplexity-1", "method") == sorted(wanted, key=wanted.get)
    shown.page.keyboard.press("Space")
    assert shown.sort_of("table-perplexity-1", "60 %") == "descending"
    shown.page.keyboard.press("Tab")
    assert shown.page.evaluate("document.activeElement.textContent") == "70 %"
    shown.page.get_by_text("Sorted by 60 %, descending").wait_for(state="attached")


def test_without_javascript_the_tables_are_right(view: Any) -> None:
    shown = view("full", java_script_enabled=False)
    assert shown.page.locator("button").count() == 0
    assert shown.page.locator("#table-perplexity-1 tbody th").all_inner_texts()[0] == "dense"
    assert shown.page.locator(".command code").count() == len(read_plan("full"))


# --- commands ------------------------------------------------------------------------------------


@pytest.mark.parametrize("allowed", [True, False])
def test_copy(view: Any, allowed: bool) -> None:
    """Through the clipboard's own interface, and where that is refused the old way."""
    shown = view("full", permissions=["clipboard-read", "clipboard-write"])
    if not allowed:
        shown.page.evaluate(
            "() => { navigator.clipboard.writeText = () => Promise.reject(new Error('no')); }"
        )
    command = "make reproduce PLAN=full ONLY='04_prune_model/admm-grad-60'"
    button = shown.page.get_by_role("button", name=f"Copy {command}", exact=True)
    button.focus()
    shown.page.keyboard.press("Enter")
    shown.page.wait_for_function(
        "node => node.textContent === 'Copied'", arg=button.element_handle()
    )
    assert shown.page.evaluate("navigator.clipboard.readText()") == command


# --- paper ---------------------------------------------------------------------------------------


def test_on_paper(view: Any) -> None:
    """Black on white without controls, also from a dark page, and nothing is cut."""
    shown = view("laptop", width=700, color_scheme="dark")
    shown.page.evaluate("dispatchEvent(new Event('beforeprint'))")
    shown.page.emulate_media(media="print")
    assert shown.page.locator("details[open]").count() == shown.page.locator("details").count() > 0
    style = "node => [getComputedStyle(node).color, getComputedStyle(node).backgroundColor]"
    body = shown.page.locator("body").evaluate(style)
    assert body == ["rgb(0, 0, 0)", "rgb(255, 255, 255)"]
    for hidden in (".copy", "nav", ".skip"):
        assert not shown.page.locator(hidden).first.is_visible()
    cut = shown.page.locator(".scroll").evaluate_all(
        "nodes => nodes.filter((node) => node.scrollWidth > innerWidth).map((node) => node.id)"
    )
    assert cut == []
    after = "node => getComputedStyle(node, '::after').content"
    assert "arxiv.org" in shown.page.locator("a[href^=http]").first.evaluate(after)
    shown.page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert shown.page.locator("details[open]").count() == 0
    assert len(shown.page.pdf(format="A4")) > 50_000


# --- notebooks -----------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [360, 1440])
def test_a_notebook_asks_nobody(view: Any, files: dict[str, Path], width: int) -> None:
    """Even with an image and a script from elsewhere in an output: the policy blocks them."""
    shown = view("laptop", width=width)
    shown.page.get_by_role("link", name="executed notebook of admm-grad-60", exact=True).click()
    shown.page.wait_for_load_state()
    assert shown.page.title().startswith("A question?") and overflow(shown.page) <= 0
    assert all(shown.page.locator(f"main {part}").count() for part in ("table", "math", "pre code"))
    asked = {url for url in shown.requests if not url.startswith("file:")}
    assert {shown.refused.get(url) for url in asked} == {"csp"} and len(asked) == 2
    assert all("Content Security Policy" in line for line in shown.complaints)
    shown.page.get_by_role("link", name="the report").click()
    shown.page.wait_for_url("**/report.html#run-*")


def test_a_notebook_is_accessible(view: Any, files: dict[str, Path]) -> None:
    path = files["laptop"].parent / "laptop" / "html" / f"{NOTEBOOK}.html"
    for scheme in SCHEMES:
        page = view("laptop", path=path, color_scheme=scheme).page
        found = axe_api.Axe().run(page).response["violations"]
        bad = [item for item in found if item["impact"] in ("serious", "critical")]
        # the image from elsewhere that this test put there has no text
        assert [item["id"] for item in bad if item["id"] != "image-alt"] == []
