"""The report: what it says is what the records say, it asks no network, and data stay data."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
from pathlib import Path
from statistics import mean

import nbformat
import pytest
import yaml
from bs4 import BeautifulSoup

from helpers import describe, notebook_pages, pages, report, report_parts
from helpers import plan as plans
from helpers import run as runner
from helpers.claims import CLAIMS
from helpers.errors import RecordError, RunError
from helpers.paths import reference_dir, root
from helpers.plots import figures
from helpers.records import read_records, write_record

EXTERNAL = re.compile(r"""(?:src|href|action|data|poster|srcset)=["']?\s*(?:https?:)?//""", re.I)


def soup(text: str) -> BeautifulSoup:
    return BeautifulSoup(text, "html.parser")


def committed(plan: str) -> list[dict]:
    return read_records(reference_dir(plan) / "records")


def squeezed(text: str) -> str:
    """Text with every run of white space, no-break spaces too, as one space."""
    return " ".join(text.split())


@pytest.fixture(scope="module", params=["laptop", "full"])
def page(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Page:
    """The report of the committed records of a plan."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRUNING_RESULTS", str(tmp_path_factory.mktemp("results")))
        return Page(request.param, report.write_report(request.param, print))


class Page:
    """A report: its plan, its file, its text and its tree."""

    def __init__(self, plan: str, path: Path) -> None:
        self.plan, self.path = plan, path
        self.text = path.read_text(encoding="utf-8")
        self.tree = soup(self.text)

    def rows(self, ident: str) -> dict[str, list]:
        """The cells of a table by the text of their row."""
        body = self.tree.find(id=ident).find("tbody")
        return {squeezed(row.th.text): row.find_all("td") for row in body.find_all("tr")}


# --- the committed records ---------------------------------------------------------------------


def test_numbers_are_those_of_the_records(page: Page) -> None:
    """Means over seeds, computed here from the JSON alone."""
    chosen: dict[str, list[float]] = {}
    for path in sorted((reference_dir(page.plan) / "records").glob("04_prune_model--*.json")):
        record = json.loads(path.read_text())
        asked = record["parameters"]
        if asked["sparsity"] == 0.6 and not asked["options"] and asked["method"] != "dense":
            value = record["metrics"]["perplexity"]["value"]
            chosen.setdefault(asked["method"], []).append(value)
    heads = [squeezed(th.text) for th in page.tree.find(id="table-perplexity-1").thead("th")]
    column = heads.index("60 %") - 1
    rows = page.rows("table-perplexity-1")
    assert len(chosen) == 5
    for method, values in chosen.items():
        assert float(rows[method][column]["data-key"]) == pytest.approx(mean(values), rel=1e-12)
    best = min(chosen, key=lambda method: mean(chosen[method]))
    assert rows[best][column].strong, "the lowest is bold"
    assert sum(bool(cells[column].strong) for cells in rows.values()) == 1
    assert f"{mean(chosen[best]):.2f} at 60 %" in squeezed(page.tree.find(class_="lead").text)


def test_tables_hold_what_the_committed_csv_files_hold(page: Page) -> None:
    for path in sorted((reference_dir(page.plan) / "tables").glob("*.csv")):
        head, *lines = csv.reader(path.read_text(encoding="utf-8").splitlines())
        if head[0] == "about":
            continue  # several tables in one file
        table = page.tree.find(id=f"table-{path.stem.replace('_', '-')}-1")
        assert [squeezed(th.text) for th in table.thead("th")] == head
        found = table.tbody("tr")
        assert len(found) == len(lines)
        for row, line in zip(found, lines, strict=True):
            assert squeezed(row.th.text) == line[0]
            for cell, value in zip(row("td"), line[1:], strict=True):
                if value == "":
                    assert cell["data-key"] == "" and cell.text == "–"
                elif re.fullmatch(r"[-\d.e+]+", value):
                    assert float(cell["data-key"]) == pytest.approx(float(value), rel=1e-9)
                else:
                    assert squeezed(cell.text) == value


def test_claims_have_the_committed_verdicts(page: Page) -> None:
    """Against tables/claims.md, which was written by another program."""
    text = (reference_dir(page.plan) / "tables" / "claims.md").read_text(encoding="utf-8")
    wanted = re.findall(r"\| \d+ \| (.+?) \| \*\*(.+?)\*\* \| (.+?) \|\n", text)
    items = page.tree.select("ol.claims > li")
    assert len(items) == len(wanted) == len(CLAIMS)
    for number, (item, (sentence, verdict, numbers)) in enumerate(zip(items, wanted, strict=True)):
        assert squeezed(item.h3.text) == f"{number + 1}. {sentence}"
        badge = item.find(class_="verdict")
        assert badge.b["aria-hidden"] == "true" and badge.b.text.strip()
        assert squeezed(badge.text).endswith(verdict)
        shown = squeezed(item.find("p").text)
        assert shown[1:] == numbers.replace("`", "")[1:]
        assert item.find(class_="test").text.startswith("Test: ")


def test_every_figure_is_there_with_its_words(page: Page) -> None:
    names = set(figures(committed(page.plan)))
    shown = {figure["id"].removeprefix("figure-") for figure in page.tree("figure")}
    assert shown == {name.replace("_", "-") for name in names} and len(names) >= 8
    for figure in page.tree("figure"):
        svg = figure.svg
        title, text = (page.tree.find(id=name) for name in svg["aria-labelledby"].split())
        assert svg["role"] == "img" and title.name == "title" and text.name == "desc"
        assert len(title.text) > 8 and len(text.text) > 80 and re.search(r"\d", text.text)
        assert title.text in figure.figcaption.text


def test_ids_are_unique_and_every_reference_has_its_target(page: Page) -> None:
    ids = [tag["id"] for tag in page.tree(id=True)]
    assert len(ids) == len(set(ids)) > 500
    wanted = set(re.findall(r"url\(#([^)]+)\)", page.text))
    wanted |= {tag["href"][1:] for tag in page.tree(href=re.compile("^#"))}
    for name in ("aria-labelledby", "aria-describedby"):
        wanted |= {ident for tag in page.tree(attrs={name: True}) for ident in tag[name].split()}
    assert len(wanted) > 100 and wanted <= set(ids)


def test_nothing_is_loaded_from_elsewhere(page: Page) -> None:
    links = page.tree("a", href=re.compile("^https?:"))
    assert {link["href"] for link in links} == {report.PAPER}
    rest = page.text
    for link in links:
        rest = rest.replace(f'href="{link["href"]}"', "")
    assert not EXTERNAL.search(rest) and "@import" not in rest
    assert not page.tree(["link", "img", "iframe", "object", "embed", "base"])
    assert not re.search(r"url\((?!#)", rest)
    policy = page.tree.find("meta", attrs={"http-equiv": "Content-Security-Policy"})["content"]
    assert "default-src 'none'" in policy and "unsafe-inline" not in policy.split("style-src")[0]
    assert len(page.tree("script")) == 1 and not page.tree("script", src=True)


def test_structure_for_a_screen_reader(page: Page) -> None:
    assert page.tree.html["lang"] == "en" and page.tree.title.text
    for landmark in ("header", "nav", "main", "footer", "h1"):
        assert len(page.tree(landmark)) == 1, landmark
    levels = [int(tag.name[1]) for tag in page.tree(re.compile("^h[1-6]$"))]
    assert levels[0] == 1 and all(b <= a + 1 for a, b in zip(levels, levels[1:], strict=False))
    assert page.tree.find("a", class_="skip")["href"] == "#main"
    for table in page.tree("table"):
        assert table.caption.text.strip()
        assert all(th.get("scope") in ("col", "row") for th in table("th"))


def test_it_says_whose_records_these_are(page: Page) -> None:
    text = squeezed(page.tree.header.text)
    assert "Not made on this machine." in text
    assert f"the {len(committed(page.plan))} committed records" in text
    assert "Reproduced here?" not in page.text
    days = {record["created"][:10] for record in committed(page.plan)}
    assert min(days) in text and "cpu, 1 thread" in text
    for commit in {record["git"]["commit"] for record in committed(page.plan)}:
        assert commit in page.rows("table-commits")


def test_every_run_has_its_command_and_parameters(page: Page) -> None:
    items = {item["id"]: item for item in page.tree.select(".runs > li")}
    files = sorted((root() / "runs" / page.plan).rglob("*.yaml"))
    assert len(items) == len(files)
    for path in files:
        item = items[f"run-{path.parent.name}--{path.stem}"]
        command = f"make reproduce PLAN={page.plan} ONLY='{path.parent.name}/{path.stem}'"
        assert item.select_one(".command code").text == command
        given = yaml.safe_load(path.read_text()) or {}
        shown = dict(code.text.split("=", 1) for code in item.select(".options code"))
        defaults, _ = plans.read_parameters_cell(root() / f"notebooks/{path.parent.name}.ipynb")
        assert shown == {k: str(v) for k, v in given.items() if v != defaults[k]}
        assert len(plans.read_plan(page.plan, command.split("'")[1])) == 1
    record = next(r for r in committed(page.plan) if r["name"] == "admm-grad-60")
    assert f"{record['run_seconds']:,.0f} s" in items["run-04_prune_model--admm-grad-60"].text


def test_size(page: Page) -> None:
    assert page.path.stat().st_size < 3e6
    assert page.path.name == "report.html"


# --- records of this machine --------------------------------------------------------------------


def small_notebook(*extra: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """An executed notebook with what a page must not load."""
    badge = "[![Open](https://x.example/b.svg)](https://x.example/nb)"
    words = f"# A question?\n{badge} see [next](b.ipynb)\n\n$$ \\hat W^2 $$\n"
    words += "where $a_1$ and $b_1$, not `$c_1$`, nor $x^$"
    widget = {notebook_pages.WIDGET: {"model_id": "1"}, "text/plain": "VBox(children=())"}
    script = {"application/javascript": "alert(1)", "text/plain": "the plain text"}
    bar = {notebook_pages.WIDGET: {"model_id": "2"}, "text/plain": "my bar: 0layer [00:00, ?l/s]"}
    shown = (widget, script, bar)
    outputs = [nbformat.v4.new_output("display_data", data) for data in shown]
    cells = [
        nbformat.v4.new_markdown_cell(words),
        nbformat.v4.new_code_cell("1 + 1", outputs=outputs, execution_count=1),
        *extra,
    ]
    return nbformat.v4.new_notebook(cells=cells, metadata={"widgets": {"x": "secret state"}})


class Here:
    """Results of the plan laptop on "this machine"."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runs = {run.id: run for run in plans.read_plan("laptop")}
        self.said: list[str] = []

    def write(self, *, without: str = "", stale: str = "", apart: str = "", only: str = "") -> None:
        tables = next(i for i in self.runs if i.startswith(plans.TABLES_NOTEBOOK))
        records = {f"{r['notebook']}--{r['name']}": r for r in committed("laptop")}
        for ident in [*(i for i in records if i != tables), tables]:  # the last reads the others
            record, run = records[ident], self.runs[ident]
            if ident == without or (only and ident != only):
                continue
            if ident == apart:
                record["metrics"]["perplexity"]["value"] *= 1.5
            other = "that of other code"
            record["fingerprint"] = other if ident == stale else plans.fingerprint(run)
            write_record(run.record_path, record)

    def notebook(self, name: str, text: str | None = None) -> Path:
        path = self.folder / "laptop" / "runs" / f"{name}.ipynb"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(nbformat.writes(small_notebook()) if text is None else text)
        return path

    def report(self) -> Page:
        self.said.clear()
        return Page("laptop", report.write_report("laptop", self.said.append))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Here:
    monkeypatch.setenv("PRUNING_RESULTS", str(tmp_path / "else where"))
    for record in committed("laptop"):  # a run may have been added since they were made
        place = Path("laptop", record["notebook"], f"{record['name']}.yaml")
        (tmp_path / "runs" / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root() / "runs" / place, tmp_path / "runs" / place)
    for name in set(plans.plan_names()) - {"laptop"}:
        (tmp_path / "runs" / name).symlink_to(root() / "runs" / name)
    monkeypatch.setenv("PRUNING_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(report_parts, "figures", lambda records: {})  # most of a report's seconds
    return Here(tmp_path / "else where")


GRAD, WANDA, DENSE = (f"04_prune_model--{name}" for name in ("admm-grad-60", "wanda-60", "dense"))


def test_own_records_all_well(here: Here) -> None:
    here.write()
    page = here.report()
    text = squeezed(page.tree.header.text)
    judged = len(here.runs) - 1  # the tables notebook measures nothing
    assert page.path == here.folder / "report.html"
    assert "Made on this machine." in text and f"{judged} of {judged} runs agree" in text
    assert not page.tree.select(".notice.warn") and not page.tree.find(id="table-apart")
    outcomes = {squeezed(row[-1].text) for row in page.rows("table-verdict").values()}
    assert outcomes == {"✓ agrees"}


def test_one_run_stands_beside_the_committed_ones_of_the_others(here: Here) -> None:
    here.write(only=GRAD)
    page = here.report()
    header = squeezed(page.tree.header.text)
    assert "1 of 1 runs agree" in header, "what was not run here is not apart"
    assert f"1 of {len(here.runs)} runs of the plan are up to date" in header
    assert "Of 1 ways" not in header and "admm-grad takes" in header
    section = page.tree.find(id="beside-the-committed-runs")
    assert "Made here: admm-grad-60." in squeezed(section.p.text)
    rows = {squeezed(row.th.text): row for row in section.table.tbody("tr")}
    value = committed_value(WANDA)
    assert f"{value:.1f}" in squeezed(rows["wanda"].text)
    assert {"dense", "wanda", "sparsegpt", "admm1", "admm-grad"} <= set(rows)


def test_a_whole_plan_needs_no_committed_runs_beside_it(here: Here) -> None:
    here.write()
    assert here.report().tree.find(id="beside-the-committed-runs") is None


def committed_value(ident: str) -> float:
    records = {f"{r['notebook']}--{r['name']}": r for r in committed("laptop")}
    return records[ident]["metrics"]["perplexity"]["value"]


def test_own_records_that_are_missing_failed_stale_or_apart(here: Here) -> None:
    here.write(without=WANDA, stale=DENSE, apart=GRAD)
    here.notebook(f"{WANDA}.failed")
    page = here.report()
    text = squeezed(page.tree.select_one(".notice.warn").text)
    assert f"{len(here.runs) - 2} of {len(here.runs)} runs" in text
    assert "failed (1): 04_prune_model/wanda-60" in text
    assert "made by other code (1): 04_prune_model/dense" in text
    rows = page.tree.find(id="table-apart").tbody("tr")
    names = {squeezed(row.th.text).split()[1] for row in rows}
    assert names == {"admm-grad-60", "wanda-60", "dense"}
    row = next(r for r in rows if r("td")[0].text == "perplexity" and "admm-grad" in r.th.text)
    assert row("td")[3].text == "+50.00 %" and squeezed(row("td")[-1].text) == "✗ apart"
    missing = next(r for r in rows if "wanda-60" in r.th.text)
    assert missing("td")[1].text == "missing" == squeezed(missing("td")[-1].text)[2:]
    assert f"{len(here.runs) - 4} of {len(here.runs) - 1} runs agree" in page.text


def test_a_run_under_way_is_not_called_failed(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    here.write(without=WANDA)
    here.notebook(f"{WANDA}.failed")  # where papermill executes it
    job = here.runs[WANDA].job_path
    job.parent.mkdir()
    job.write_text("{}")
    monkeypatch.setattr(report, "running_plans", lambda: ["laptop"])
    text = squeezed(here.report().tree.select_one(".notice.warn").text)
    assert "under way (1): 04_prune_model/wanda-60" in text and "failed" not in text
    monkeypatch.setattr(report, "running_plans", lambda: [])  # killed with its runner
    assert "failed (1)" in squeezed(here.report().tree.select_one(".notice.warn").text)


def test_verdict_is_the_one_of_make(here: Here, capsys: pytest.CaptureFixture[str]) -> None:
    here.write(apart=GRAD)
    assert runner.main(["verdict", "--plan", "laptop"]) == 1
    last = capsys.readouterr().out.strip().splitlines()[-1]
    counts = re.fullmatch(r"reproduced (\d+) of (\d+)", last).groups()
    assert "{} of {} runs agree".format(*counts) in here.report().text


def test_links_to_notebooks_lead_there_and_back(here: Here) -> None:
    here.write()
    here.notebook(GRAD)
    here.notebook(f"{WANDA}.failed")
    page = here.report()
    links = page.tree.select(".runs a")
    assert [link["aria-label"] for link in links] == [
        "executed notebook of admm-grad-60",
        "failed notebook of wanda-60",
    ]
    for link in links:
        target = page.path.parent / link["href"]
        back = soup(target.read_text()).nav.a["href"]
        place, _, ident = back.partition("#")
        assert (target.parent / place).resolve() == page.path.resolve()
        assert page.tree.find(id=ident)


def test_notebooks_are_converted_only_when_newer(here: Here) -> None:
    here.write()
    source, other = here.notebook(GRAD), here.notebook(DENSE)
    here.report()
    target = here.folder / "laptop" / "html" / f"{GRAD}.html"
    assert here.said == [f"[{n}/2] {name}.ipynb as HTML" for n, name in ((1, GRAD), (2, DENSE))]
    here.report()
    assert here.said == []
    later = target.stat().st_mtime + 5
    os.utime(source, (later, later))
    other.unlink()
    page = here.report()
    assert here.said == [f"[1/1] {GRAD}.ipynb as HTML"]
    assert not target.with_name(f"{DENSE}.html").exists()
    assert len(page.tree.select(".runs a")) == 1


@pytest.mark.parametrize("text", ['{"cells": [', "{}", '{"nbformat": 4, "cells": 3}', "\x00"])
def test_a_broken_notebook_is_named_and_the_report_written(here: Here, text: str) -> None:
    here.write()
    here.notebook(GRAD, text)
    here.notebook(DENSE)
    page = here.report()
    problem = next(line for line in here.said if line.startswith("cannot convert"))
    assert GRAD in problem and "run it again" in problem and "\n" not in problem
    assert squeezed(problem) in squeezed(page.tree.select_one(".notice.warn").text)
    assert [link["aria-label"] for link in page.tree.select(".runs a")] == [
        "executed notebook of dense"
    ]


def test_a_notebook_page_is_static_and_offline(tmp_path: Path) -> None:
    path = tmp_path / "a.ipynb"
    nbformat.write(small_notebook(), path)
    text = notebook_pages.notebook_page(path)
    tree = soup(text)
    assert not tree(["script", "link", "img", "iframe"]) and not re.search("alert|secret", text)
    assert tree.h1.text == "A question?" and len(tree("h1")) == 1 and tree.main and tree.nav
    assert [a.text for a in tree.main("a")] == ["Open"]  # the badge in words; no dead link
    assert "see next" in squeezed(tree.main.text)
    assert text.count("open the notebook itself") == 1 and "my bar" not in text
    assert "VBox" not in text and "the plain text" in text
    assert [math["display"] for math in tree("math")] == ["block", "inline", "inline"]
    assert tree.math.find("msup").mn.text == "2" and tree("msub")[1].mi.text == "b"
    assert [code.text for code in tree.main("code")] == ["$c_1$", "x^"]  # the last is no formula
    policy = tree.find("meta", attrs={"http-equiv": "Content-Security-Policy"})["content"]
    assert "script-src 'none'" in policy and "default-src 'none'" in policy


def test_a_plan_without_records_is_refused(here: Here, one_line_error) -> None:
    with one_line_error(RunError, "t4", "make reproduce PLAN=t4"):
        report.write_report("t4", print)
    assert not (here.folder / "report.html").exists()


def test_the_command(here: Here, capsys: pytest.CaptureFixture[str]) -> None:
    here.write()
    here.notebook(GRAD)
    assert runner.main(["report", "--plan", "laptop"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"[1/1] {GRAD}.ipynb as HTML", f"the report: {here.folder / 'report.html'}"]
    assert runner.main(["report", "--plan", "nothing"]) == 1


# --- data stay data -----------------------------------------------------------------------------

EVIL = '<script>alert(1)</script><img src=//x.example/a.png onerror="alert(2)">"\'&'


@pytest.mark.filterwarnings("ignore:constrained_layout not applied")  # a label that long
def test_text_of_a_record_is_never_markup(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_parts, "figures", figures)
    here.write()
    for ident in (GRAD, "05_zero_shot--admm-grad-50"):
        path = here.runs[ident].record_path
        record = json.loads(path.read_text())
        record["device"] = EVIL
        record["parameters"]["method"] = (
            f"x {EVIL} [a](javascript:alert(3)) ![b](http://x.example/p)"
        )
        record["versions"]["torch"] = EVIL
        record["model"]["name"] = EVIL
        record["git"]["commit"] = EVIL
        record["seeds"][EVIL] = 1
        path.write_text(json.dumps(record))
    page = here.report()
    assert len(page.tree("script")) == 1 and not page.tree("img")
    assert not page.tree(onerror=True) and not page.tree(href=re.compile("^javascript"))
    body = page.tree.body.text
    assert body.count("<script>alert(1)</script>") >= 8
    assert not page.tree.find("svg").find("img")


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("`a<b` and **c**", "<code>a&lt;b</code> and <strong>c</strong>"),
        ("1. no list", "1. no list"),
        ("- no list", "- no list"),
        ("60 %", "60\N{NO-BREAK SPACE}%"),
        ("<b onclick=x>", "&lt;b onclick=x&gt;"),
        ("[x](javascript:alert(1))", '<a href="#harmful-link">x</a>'),
        ("![seen](http://x.example/a.png)", "seen"),
        ("a_b_c", "a_b_c"),
        ("", ""),
    ],
)
def test_markdown(text: str, html: str) -> None:
    assert pages.markdown(text) == html


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("4.1e+06", 4.1e6),
        ("203,818", 203818),
        ("63.46 ± 2.09", 63.46),
        ("**-0.110 ± 0.045**", -0.11),
        ("−0.5", -0.5),
        ("+0.16 %", 0.16),
        ("0.000509", 0.000509),
        ("3.61e-09", 3.61e-9),
        ("60 %", 60),
        ("5.1 h", None),
        ("2:4", None),
        ("32 x 512", None),
        ("–", None),
        ("missing", None),
        ("nan", None),
        ("5.24.0", None),
    ],
)
def test_number_in(text: str, number: float | None) -> None:
    assert pages.number_in(text) == number


def test_svg_that_is_not_matplotlibs_is_refused() -> None:
    with pytest.raises(ValueError, match="viewBox"):
        pages.inline_svg("<svg></svg>", "x", describe.Words("a", "b", "c"))


# --- figures in words ---------------------------------------------------------------------------


def test_words_hold_the_numbers_of_the_records() -> None:
    records = committed("full")
    runs = {r["name"]: r for r in records if r["notebook"] == "04_prune_model"}
    values = [
        runs[f"admm-grad-60{end}"]["metrics"]["perplexity"]["value"]
        for end in ("", "-seed1", "-seed2")
    ]
    words = describe.describe("perplexity", records)
    assert f"at 60 % {mean(values):.2f} (admm-grad)" in words.finding
    ratio = next(r for r in records if "schedule" in (r["series"] or {}))["series"]["schedule"]
    paper = 100 * ratio["ratio"]["unstructured"]["paper"]
    assert f"paper {paper:.0f} %" in describe.describe("schedule", records).finding
    layers = [layer["error"] for layer in runs["sparsegpt-60"]["layers"]]
    assert f"sparsegpt {mean(layers):.4f}" in describe.describe("layer_error", records).finding


def test_arrivals_are_those_of_the_committed_claims() -> None:
    text = (reference_dir("full") / "tables" / "claims.md").read_text(encoding="utf-8")
    ours, theirs = re.search(r"ADMM needs ([\d.]+) iterations, the rival (\d+)", text).groups()
    finding = describe.describe("weight_update_median", committed("full")).finding
    assert f"ADMM {ours}," in finding and f"Adam {theirs} " in finding


def test_a_figure_of_one_of_several_models() -> None:
    records = committed("laptop")
    others = json.loads(json.dumps(records))
    for record in others:
        if "model" in record["parameters"]:
            record["parameters"]["model"] = "owner/Other-1B"
        if record["notebook"] == "04_prune_model":
            record["metrics"]["perplexity"]["value"] *= 2
    both = records + others
    drawn = {name for name in figures(both) if describe.kind_of(name) == "perplexity"}
    assert drawn == {"perplexity_embedded", "perplexity_other-1b"}
    dense = next(r for r in records if r["name"] == "dense" and "perplexity" in r["metrics"])
    value = dense["metrics"]["perplexity"]["value"]
    assert f"{value:.2f}." in describe.describe("perplexity_embedded", both).finding
    assert f"{2 * value:.2f}." in describe.describe("perplexity_other-1b", both).finding
    parts = report_parts.topic_parts(both)
    ids = [tag["id"] for part in parts.values() for tag in soup(part)(id=True)]
    assert len(ids) == len(set(ids))
    assert "(owner/Other-1B)" in parts["Perplexity"]


def test_an_unknown_figure_is_refused(one_line_error) -> None:
    with one_line_error(RecordError, "nothing", "perplexity"):
        describe.describe("nothing", committed("laptop"))
