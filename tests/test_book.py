"""The book: built whole, without a warning; it needs no network, and its links lead somewhere."""

import base64
import copy
import functools
import json
import math
import os
import re
import shutil
import statistics
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_output

import book.__main__
import book.executed
import book.runs
from book.__main__ import windows_line
from book.conf import page_of
from book.runs import COMMITTED, HERE, Runs, list_page
from helpers import __all__ as public_names
from helpers.paths import notebooks_dir, reference_dir, root
from reproduction.claims import CLAIMS
from reproduction.plan import read_plan
from reproduction.records import read_record, read_records
from reproduction.tables import all_tables

pytest.importorskip(
    "myst_nb", reason="the book's packages are not installed: make setup"
)

PLANS = ["full", "beyond", "second", "laptop"]  # as everywhere
WIDGET = "application/vnd.jupyter.widget-view+json"


class Page(HTMLParser):
    """What a page loads and links to, the ids in it, and its images without words."""

    def __init__(self, path):
        super().__init__()
        self.loads = []
        self.links = []
        self.ids = set()
        self.silent = []
        self.text = path.read_text("utf-8")
        self.feed(self.text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.ids.add(found.get("id"))
        address = found.get("src") or found.get("href")
        if address:  # what is no link a browser fetches by itself
            (self.links if tag == "a" else self.loads).append(address)
        if tag == "img" and not found.get("alt"):
            self.silent.append(address)


def executed(text, path):
    """Write a notebook as a run leaves it: a table, a picture, a widget, and an explorer."""
    notebook = nbformat.read(notebooks_dir() / "04_prune_model.ipynb", as_version=4)
    (cell,) = (cell for cell in notebook.cells if cell.id == "prune")
    picture = base64.b64encode(
        (reference_dir("full") / "figures" / "perplexity.png").read_bytes()
    )
    for data in (
        {"text/markdown": f"| a |\n|---|\n| {text} |"},
        {"image/png": picture.decode()},
        {WIDGET: {"model_id": "x"}, "text/plain": "IntSlider"},
        {
            WIDGET: {"model_id": "y"},
            "text/html": '<p id="T_1f0a7_row0">the static twin</p>',
        },
    ):
        cell.outputs.append(new_output("display_data", data=data))
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)


@pytest.fixture(scope="module", name="built")
def build(tmp_path_factory):
    """The book on a machine where a part of two plans was run, and a book was made before."""
    results = tmp_path_factory.mktemp("results")
    for plan, name in [
        ("laptop", "dense"),
        ("laptop", "admm-grad-60"),
        ("smoke", "dense"),
    ]:
        executed(
            f"{name} of {plan}",
            results / plan / "runs" / f"04_prune_model--{name}.ipynb",
        )
    executed("broken", results / "laptop" / "runs" / "05_zero_shot--dense.failed.ipynb")
    (results / "laptop" / "verdict.txt").write_text("6 of 7 runs\n\nx  1.0  1.1\n")
    here = results / "laptop" / "records" / "04_prune_model--wanda-60.json"
    here.parent.mkdir()
    shutil.copyfile(reference_dir("laptop") / "records" / here.name, here)
    (results / "book").mkdir()
    (results / "book" / "old.html").touch()
    where = dict(cwd=root(), env=os.environ | {"PRUNING_RESULTS": str(results)})
    command = [sys.executable, "-m", "book"]
    answer = subprocess.run(command, **where, capture_output=True, text=True)
    assert (answer.returncode, answer.stderr) == (0, "")
    assert answer.stdout == f"the book: {results / 'book' / 'index.html'}\n"
    return results / "book"


def test_pages_load_nothing_from_the_network_and_links_hold(built):
    written = [path for path in built.rglob("*.html") if "_static" not in path.parts]
    pages = {path.resolve(): Page(path) for path in written}
    assert len(pages) > 50
    for path, page in pages.items():
        assert page.silent == [], f"{path}: images without words"
        for address in page.loads + page.links:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                assert address not in page.loads or parts.scheme == "data", (
                    f"{path}: {address}"
                )
                continue
            target = (
                (path.parent / unquote(parts.path)).resolve() if parts.path else path
            )
            assert target.is_file(), f"{path}: {address}"
            if parts.fragment and target in pages:
                assert unquote(parts.fragment) in pages[target].ids, (
                    f"{path}: {address}"
                )
    for path in built.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\W*(https?:)?//", path.read_text("utf-8"))


def test_notebooks_are_shown_as_they_ran_here(built):
    page = Page(built / "notebooks" / "04_prune_model.html").text
    assert "<p>admm-grad-60 of laptop</p>" in page
    assert "IntSlider" not in page
    assert '<p id="T_00000_row0">the static twin</p>' in page
    assert "6 of 7 runs</strong>" in Page(built / "index.html").text
    other = Page(built / "notebooks" / "05_zero_shot.html").text
    assert "This run came with the repository" in other


def test_the_code_is_documented(built):
    """Each module has a page, or is on that of its package."""
    for package in ("helpers", "reproduction"):
        for path in (root() / package).rglob("[!_.]*.py"):
            name = ".".join(path.relative_to(root()).with_suffix("").parts)
            if "own" not in path.parts and ".ipynb_checkpoints" not in path.parts:
                page = page_of(name)
                assert f"module-{page}" in Page(built / "api" / f"{page}.html").ids
    assert (
        "helpers.large.prune_checkpoint" in Page(built / "api/helpers.large.html").ids
    )
    linked = {link.rpartition(".")[2] for link in Page(built / "code.html").links}
    assert set(public_names) <= linked, "names that README shows"


# --- from a number to its runs ---------------------------------------------------------------


NUMBER = re.compile(r"[-+]?\d[\d,.e-]*( ± [\d,.]+)?")


@functools.cache
def parsed(path):
    """A page's elements."""
    return BeautifulSoup(path.read_text("utf-8"), "lxml")


def numbers(table):
    """The cells of a table that are numbers, each with the name of its row; not guessing's."""
    for row in table.select("tbody tr"):
        heads = row.find_parent("table").find_all("th")
        label, *cells = row.find_all("td")
        for head, cell in zip(heads[1:], cells, strict=True):
            number = NUMBER.fullmatch(cell.get_text(strip=True))
            if number and head.get_text(strip=True) != "chance":
                yield label.get_text(strip=True), cell


def follow(page, link):
    """The page that a link leads to, and the part of it."""
    path, _, fragment = link["href"].partition("#")
    target = (page.parent / unquote(path)).resolve() if path else page
    part = parsed(target)
    return target, part.find(id=unquote(fragment)) if fragment else part


def records_behind(page, cell):
    """The records that a cell leads to: its run's, or those that a list of runs links to."""
    link = cell.find("a")
    assert link, f"{page}: {cell.get_text()} leads nowhere"
    target, part = follow(page, link)
    pages = [target]
    if target.parent.name == "runs":  # a list
        table = part.find("table")
        pages = [follow(target, link)[0] for link in table.find_all("a")]
    return [
        json.loads(
            (
                reference_dir(path.parent.name) / "records" / f"{path.stem}.json"
            ).read_text("utf-8")
        )
        for path in pages
    ]


@pytest.mark.parametrize("name", ["README.html", "index.html", "plans/full.html"])
def test_a_perplexity_leads_to_the_records_that_it_is_the_mean_of(built, name):
    """In two clicks, and the mean is worked out here, of the committed files."""
    page = built / name
    seen = 0
    for table in parsed(page).find_all("table"):
        heads = [head.get_text(strip=True) for head in table.find_all("th")]
        if heads[0] != "method" or "runs" in heads:
            continue
        if table.find_parent("section").get("id") == "full-windows":
            continue  # of perplexities, too, and not means
        for method, cell in numbers(table):
            records = records_behind(page, cell)
            assert {r["parameters"]["method"] for r in records} == {method.lower()}
            mean = statistics.mean(r["metrics"]["perplexity"]["value"] for r in records)
            number, _, half = (
                cell.get_text(strip=True).replace(",", "").partition(" ± ")
            )
            # four digits, and the decimals of its ± where there is one
            places = 10.0 ** -len(half.partition(".")[2]) if half else mean / 1000
            if half and float(half) >= 100:  # two digits of it
                places = 10.0 ** (len(half) - 2)
            assert float(number) == pytest.approx(mean, abs=0.51 * places)
            seen += 1
    assert seen >= 7


def test_a_list_of_runs_has_the_mean_and_its_interval(built):
    """Seed 0 first; Student's t is of a printed table, by the number of runs."""
    quantiles = {4: 3.182, 5: 2.776, 8: 2.365}
    lists = parsed(built / "runs" / "full.html")
    seen = 0
    for section in lists.select("section section section"):
        _, _, printed = section.find(["h3", "h4"]).get_text().partition(": ")
        *rows, last = section.select("tbody tr")
        n = len(rows)
        if "±" not in printed or n not in quantiles or "mean" not in last.get_text():
            continue
        assert "seed 0" in rows[0].get_text()
        texts = [row.find_all("td")[1].get_text() for row in rows]
        values = [float(text.replace(",", "")) for text in texts]
        assert last.find_all("td")[1].get_text().replace("\xa0", " ") in printed
        half = quantiles[n] * statistics.stdev(values) / math.sqrt(n)
        said = printed.partition("±")[2].strip(" #").replace(",", "")
        digit = 0.1 ** len(said.partition(".")[2])
        # the numbers of rows are rounded to four digits, too
        assert half == pytest.approx(float(said), abs=max(1.1 * digit, half / 200))
        seen += 1
    assert seen >= 20


def test_a_number_of_a_sentence_leads_to_its_runs(built):
    """As that of the recipe in the project's page, which stands in no table there."""
    page = built / "README.html"
    link = parsed(page).find("a", string=re.compile(r"^63\.2.±.1\.6$"))
    _, part = follow(page, link)
    numbers = [
        float(row.find_all("td")[1].get_text()) for row in part.select("tr")[1:6]
    ]
    assert statistics.mean(numbers) == pytest.approx(63.2, abs=0.05)


def test_the_start_page_leads_to_what_one_came_for(built):
    links = [link["href"] for link in parsed(built / "index.html").select("article a")]
    begin = links[links.index("touch_it.html") :]
    assert {"results.html", "runs.html", "notebooks/index.html"} < set(begin)
    plans = [link for link in Page(built / "results.html").links if "plans/" in link]
    assert [Path(link).stem for link in dict.fromkeys(plans)][:4] == PLANS


def test_the_results_begin_with_a_table_and_end_with_its_statistics(built):
    text = parsed(built / "results.html").find("article").get_text(" ")
    order = ["Read ADMM-Grad's row", "4,065,000", "whose choice is not in ±"]
    places = [text.replace("’", "'").index(each) for each in order]
    assert places == sorted(places)


def test_the_list_of_notebooks_has_their_minutes_and_an_order(built):
    page = parsed(built / "notebooks/index.html").find("article")
    assert "00, 02, 03 and 04" in page.get_text()
    rows = [[cell.get_text() for cell in row("td")] for row in page.select("tbody tr")]
    assert [number for number, _, _ in rows] == [f"{n:02}" for n in range(10)]
    first = (notebooks_dir() / "00_start_here.ipynb").read_text("utf-8")
    for number, question, minutes in rows[1:]:  # notebook 00 lists the others
        (said,) = re.findall(rf"\| \[{number}_.*?\| (.*?) \| (\d+) \|", first)
        assert (question.replace("’", "'"), minutes) == said


@pytest.mark.parametrize("plan", PLANS)
def test_every_number_of_a_table_leads_to_records(built, plan):
    """But for claims, chance, and what other papers have published."""
    page = built / "plans" / f"{plan}.html"
    tables = set(all_tables(read_records(reference_dir(plan) / "records")))
    for name in tables - {"published_ratios"}:
        section = parsed(page).find("section", id=f"{plan}-{name.replace('_', '-')}")
        for label, cell in numbers(section):
            assert records_behind(page, cell), (name, label)


def test_a_claim_leads_to_how_it_was_tested_and_to_its_runs(built):
    """On a page of its own, two clicks from the first."""
    assert "claims.html" in Page(built / "index.html").links
    page = parsed(built / "claims.html")
    shown = [a.get("href") for a in page.find_all("a") if a.get_text().isdigit()]
    numbers = {str(claim.number) for claim in CLAIMS}
    tested = "claims_tested.html"
    assert {href.removeprefix(f"{tested}#tested-") for href in shown} == numbers
    details = parsed(built / tested)
    for number in numbers:
        assert page.find(id=f"claim-{number}")  # other pages lead there
        (place,) = details.find_all(id=f"tested-{number}")
        assert place.find_next("strong").get_text().startswith(f"{number}. ")
        runs = [a.get("href") for a in place.find_next("details").find_all("a")]
        assert runs and all(href.startswith("runs/") for href in runs)
    # of a plan that decides nothing both are on its page
    page = parsed(built / "plans" / "laptop.html")
    links = [a.get("href") for a in page.find_all("a") if a.get_text().isdigit()]
    places = [href.partition("#")[2] for href in links if "#tested-" in href]
    assert places and all(page.find(id=place) for place in places)


def test_a_run_has_a_page(built):
    """Committed and made here stand side by side; the line that runs it again is `make`'s."""
    name = "04_prune_model--wanda-60"
    text = Page(built / "runs" / "laptop" / f"{name}.html").text
    assert f"make reproduce PLAN=laptop ONLY={name}" in text
    assert [run.id for run in read_plan("laptop", only=name)] == [name]
    record = read_record(reference_dir("laptop") / "records" / f"{name}.json")
    for word in (
        record["platform"]["processor"],
        record["git"]["commit"][:12],
        "Made here",
    ):
        assert word in text
    for parameter in record["parameters"]:
        assert parameter in text
    assert record["model"]["sha256"][:16] in text  # and of the texts
    for own in record["data"].values():
        assert own["sha256"][:16] in text and own["tokens"] in text
    smallest = min(layer["error"] for layer in record["layers"])
    assert f"{smallest:#.2g}" in text and "0.0000" not in text
    page = parsed(built / "runs" / "laptop" / f"{name}.html")
    links = [link for link in page.select("article a") if link["href"].endswith("json")]
    files = [built / "runs" / "laptop" / unquote(link["href"]) for link in links]
    assert [json.loads(file.read_text("utf-8")) for file in files] == [record, record]
    ran = Page(built / "runs" / "laptop" / "04_prune_model--admm-grad-60.html")
    assert any(link.endswith("04_prune_model.html") for link in ran.links)


def test_a_run_says_whether_its_record_is_of_todays_code(monkeypatch):
    name = "04_prune_model--wanda-60"
    runs = book.runs.Runs("laptop")
    record = runs.records[book.runs.COMMITTED][name]

    def note(**changes):
        return runs.code_note(book.runs.COMMITTED, record | changes)

    # proved to be of equal code, whatever its hashes are
    monkeypatch.setattr(book.runs, "fingerprint", lambda *_: {"core": "another"})
    assert "make same" in note()
    monkeypatch.setattr(book.runs, "fingerprint", lambda *_: record["fingerprint"])
    assert "today's code**" in note()
    monkeypatch.setattr(runs, "is_current", lambda *_: False)
    assert "earlier code" in note()
    assert "other parameters" in note(
        parameters=record["parameters"] | {"sparsity": 0.7}
    )


def test_a_commit_is_a_link_once_the_address_is_known(monkeypatch, tmp_path):
    monkeypatch.setattr(book.runs, "root", lambda: tmp_path)
    commit = "0123456789abcdef"
    for owner, linked in ("OWNER", False), ("octocat", True):
        address = f"https://github.com/{owner}/pruning-reproduction"
        (tmp_path / "CITATION.cff").write_text(f"repository-code: {address}\n")
        text = book.runs.commit_link(commit)
        assert commit[:12] in text
        assert (f"({address}/commit/{commit})" in text) == linked


def test_a_runs_page_has_the_tree_of_all_others():
    """It is written out in a template, since a run is in no tree itself."""
    index = (root() / "book/index.md").read_text("utf-8")
    trees = re.findall(r"(?s)```{toctree}\n(.*?)```", index)
    entries = [
        line.rpartition("<")[2].rstrip(">")
        for tree in trees
        for line in tree.splitlines()
        if line and not line.startswith(":")
    ]
    template = (root() / "book/templates/short-nav.html").read_text("utf-8")
    assert re.findall(r'\("([\w/]+)", "', template) == entries


def test_one_page_lists_all_runs(built):
    links = {Path(link).stem for link in Page(built / "runs.html").links}
    for path in reference_dir("").glob("*/records/*.json"):
        assert path.stem in links


@pytest.mark.parametrize("processors", [["AMD"], ["AMD", "Intel"]])
def test_the_list_of_runs_names_a_processor_once(processors):
    rows = [
        ["run", "full", "16.0", "1", "yes", "", processor, "today"]
        for processor in processors
    ]
    page = list_page([SimpleNamespace(rows=lambda: rows)])
    assert ("All were made on AMD." in page) == (len(processors) == 1)
    assert ("| processor |" in page) == (len(processors) > 1)


def test_the_list_of_runs_calls_them_as_make_reproduce_does():
    """The recipe by both of its names, and notebook 00 with the perplexity that is printed."""
    rows = {row[0].rpartition("/")[2]: row for row in Runs("laptop").rows()}
    title, _, perplexity, *_ = rows["08_beyond_the_paper--recipe-60.md)"]
    assert title.startswith("[recipe (ADMM-Grad, guide") and ") at 60 %" in title
    assert perplexity == "33.87"
    assert rows["00_start_here--tour.md)"][2] == "33.76"
    assert rows["01_calibration_capture--default.md)"][2] == "–"
    assert rows["05_zero_shot--dense.md)"][2] == "–"


def test_captions_of_one_table_that_differ_say_why():
    """Committed records of laptop lack the losses of windows, which a run here keeps."""
    committed = Runs("laptop").records[COMMITTED]
    kept = copy.deepcopy(committed)
    for run_id, record in kept.items():
        if run_id.startswith("04"):
            record["series"] = {"window_losses": {"perplexity": [3.0, 3.5, 3.2, 2.9]}}

    def line(here, ours):
        return windows_line(SimpleNamespace(records={HERE: here, COMMITTED: ours}))

    assert "before runs kept the loss of each window" in line(kept, committed)
    assert line(kept, kept) == line({}, committed) == line(committed, committed) == ""


def test_an_edited_notebook_is_shown_without_outputs(tmp_path, monkeypatch):
    """What JupyterLab has saved in it is of no run, and may name folders of this machine."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    path = shutil.copy(notebooks_dir() / "00_start_here.ipynb", folder)
    notebook = nbformat.read(path, as_version=4)
    traceback = new_output(
        "error", ename="E", evalue="", traceback=["/home/me/secret.py"]
    )
    cell = new_code_cell("1 / 0", execution_count=3, outputs=[traceback])
    notebook.cells.append(cell)
    nbformat.write(notebook, path)
    monkeypatch.setenv("PRUNING_RESULTS", str(tmp_path / "results"))
    for module in (book.__main__, book.executed):
        monkeypatch.setattr(module, "notebooks_dir", lambda: folder)
    sources = book.__main__.Sources(tmp_path / "pages")
    sources.write("notebooks/index.md", "# Notebooks\n")
    sources.notebooks()
    page = (tmp_path / "pages" / "notebooks" / "00_start_here.ipynb").read_text("utf-8")
    assert "without outputs" in page
    assert "1 / 0" in page
    assert "secret" not in page
    assert '"execution_count": 3' not in page
