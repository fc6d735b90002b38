"""Write the book, results/book/index.html: `python -m book`.

The pages are copied to a temporary folder with the layout of the project, so that links between
them work, and Sphinx makes HTML of them. Nothing is computed: tables and figures are the committed
ones and those made here, and a notebook is shown as it ran here, or else as it is committed.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
from base64 import b64decode
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_output
from sphinx.cmd.build import build_main

from book.conf import page_of, public_names
from book.executed import COPIED_PLAN, annotate, as_it_ran, copy_path, nearness
from book.runs import (
    COMMITTED,
    FOLDERS,
    HERE,
    Runs,
    list_page,
    record_folder,
    table_title,
)
from helpers.errors import HelpersError
from helpers.explore import touch
from helpers.paths import notebooks_dir, results_dir, root
from reproduction.claim_words import headline
from reproduction.claims import DECIDING
from reproduction.claims_page import claims_heading
from reproduction.claims_tested import TESTED_HEADING
from reproduction.figures import figure_alt
from reproduction.pages import (
    against_rivals,
    column_setting,
    findings,
    in_short,
    judged,
    on_shared_samples,
    one_column,
    plus_minus,
    start,
    told_minutes,
)
from reproduction.plan import plan_names, read_plan
from reproduction.runs import perplexity_runs
from reproduction.tables import window_sentence

COPIED = (
    *("README.md", "CHANGES.md", "CONTRIBUTING.md", "docs", "helpers/own"),
    *("helpers/README.md", "reproduction/README.md"),
    *("results/families.md", "reproduction/papers", "results/reference/bench"),
)
# in the order of README, wherever plans are listed
PLANS = ("full", "beyond", "second", "laptop", "original", "smoke", "t4", "paper")
PLAN_TITLES = {
    "full": "Results on the paper: plan `full`",
    "beyond": "Beyond the paper: plan `beyond`",
    "second": "Another model: plan `second`",
    "laptop": "The small plan: `laptop`",
}
# tables and figures, in the order of a plan's page
PRODUCTS = (
    *("perplexity", "claims", "variants", "zero_shot", "weight_update"),
    *("convergence", "mask", "schedule", "cost", "beyond"),
    *("published_ratios", "windows", "claims_tested"),
)
CLAIMS_PAGES = (
    "claims",
    "claims_tested",
)  # pages of their own, of the plans that decide
# the notebook's cell that draws a figure too: the id of the text above it
DRAWN_IN = {
    "perplexity": ("06_tables_and_plots", "perplexity-text"),
    "convergence": ("02_admm_layer_solve", "convergence-text"),
    "schedule": ("03_mask_schedule", "figure-text"),
    "beyond": ("06_tables_and_plots", "beyond-text"),
}
YOURS = "`make reproduce` puts yours {} (runs made in JupyterLab are not shown)."
NOTHING_RUN = f"The numbers in this book came with the repository; {YOURS.format('beside them')}\n"
COPIES = "results/reference/notebooks"  # of which each is a page
OPENINGS = {  # of the two pages about the claims
    "claims": """\
# The claims, one by one

Code tests each claim on the committed records. A claim's number leads to how it was tested, and
that to the pages of its runs. Plans too small to decide say where their runs point:
[laptop](#laptop-claims) and, on another model, [second](#second-claims).

""",
    "claims_tested": """\
# How each claim was tested

What stands behind the verdicts on [the claims](claims.md): the words, p, the margin, the rules, and
of each claim all numbers, runs and records.

""",
}
CLAIMS_OF = """\
({plan}-{name})=
## {title}: plan {plan}

{part}"""
CLAIMS_TITLES = {"full": "On the paper", "beyond": "Beyond the paper"}
TITLE = re.compile(r"^\*\*([^*.]+)\*\*$", re.MULTILINE)
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((?!\w+:|#)([^)\s]+)\)")
# in a sentence; that of percent is no cell of a table
SPREAD = re.compile(
    r"(?<![\w.,[+−-])\d[\d,.]*[ \xa0]±[ \xa0]\d+(?:\.\d+)?(?!\.?\d|\]|[ \xa0]%)"
)
WIDE = 720  # pixels
COMMAND = re.compile(r"make reproduce\s+PLAN=\w+(?:\s+ONLY='[^']*')?")  # in a sentence
RECORD = re.compile(r"results/(?:reference/)?(\w+)/records/([^/]+)\.json")
PRODUCT = re.compile(r"results/(?:reference/)?(\w+)/(?:tables|figures)(?:/(\w+)\.\w+)?")


class Sources:
    """The pages of the book, in a folder that mirrors the project."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.plans: dict[str, Runs] = {}  # those with records
        self.cells: dict[tuple[str, str], str] = {}  # where a number leads, by its row
        self.shown: dict[tuple[str, str], str] = {}  # the page of a run's notebook
        self.claims = dict(OPENINGS)  # the pages so far

    def write(self, name: str, text: str) -> None:
        """Write a page."""
        (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / name).write_text(text, encoding="utf-8")

    def copy(self, source: Path, name: str) -> None:
        """Copy a file, or a folder with its contents."""
        for path in (path for path in (source, *source.rglob("*")) if path.is_file()):
            target = self.folder / name / path.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
            if path.suffix == ".md":
                page = str(target.relative_to(self.folder))
                text = self.localise(path.read_text(encoding="utf-8"), page)
                self.write(page, self.link_cells(text))

    def localise(self, text: str, page: str) -> str:
        """Rewrite the links of a page of Markdown, to pages of the book or to copies of files."""

        def link(match: re.Match[str]) -> str:
            words, target = match.groups()
            path = os.path.normpath(os.path.join(os.path.dirname(page), target))
            if path.endswith(".csv"):  # to be downloaded
                self.copy(root() / path, path)
                return match[0]
            file, _, anchor = path.partition("#")
            if anchor and (
                there := home_of_claims(file)
            ):  # whose anchors are plain HTML
                here = os.path.dirname(home_of_claims(page) or page)
                there = os.path.relpath(there, here)
                return f'<a href="{there}#{anchor}">{words}</a>'
            if anchor:  # of a heading, which Sphinx finds
                return match[0]
            if product := PRODUCT.fullmatch(path):
                return f"[{words}](#{product[1]}-{product[2] or 'plan'})"
            if record := RECORD.fullmatch(path):
                return f"[{words}](/runs/{record[1]}/{record[2]}.md)"
            if path.startswith(COPIES):
                name = path.removeprefix(COPIES).strip("/").replace(".ran.", ".")
                return f"[{words}](/notebooks/{name or 'index.md'})"
            if path.startswith("book/") and path.endswith(".md"):
                return f"[{words}](/{path.removeprefix('book/')})"
            if path.startswith("helpers/own/"):
                return f"[{words}](#own-file)"
            if path.startswith(("helpers/", "reproduction/")) and path.endswith(".py"):
                module = page_of(path.removesuffix(".py").replace("/", "."))
                return f"{{py:mod}}`{words} <{module}>`"
            if (root() / path).is_dir():
                return words
            if Path(path).suffix not in (".md", ".ipynb"):
                self.copy(root() / path, path)
            return match[0]

        return LINK.sub(link, text)

    def link_cells(self, text: str) -> str:
        """Link a page's numbers to their records: in tables by their row, else those with a ±.

        A number of a sentence that stands in several tables has no link.
        """
        leads: dict[str, set[str]] = {}
        for (_, cell), target in self.cells.items():
            leads.setdefault(cell.strip("*"), set()).add(target)

        def link(match: re.Match[str]) -> str:
            number = match[0].replace("\u00a0", " ")
            targets = leads.get(number, set())
            return f"[{match[0]}]({targets.pop()})" if len(targets) == 1 else match[0]

        lines = text.split("\n")
        for at, line in enumerate(lines):
            if line.startswith("| ") and line.endswith(" |"):
                label, *cells = line[2:-2].split(" | ")
                cells = [
                    f"[{cell}]({self.cells[label, cell]})"
                    if (label, cell) in self.cells
                    else cell
                    for cell in cells
                ]
                lines[at] = f"| {' | '.join([label, *cells])} |"
            else:
                lines[at] = SPREAD.sub(link, line)
        return "\n".join(lines)

    def plan(self, plan: str) -> str:
        """Write the page of a plan, and return its opening: the verdict on what was made here."""
        runs = Runs(plan)
        if runs.ids:
            self.plans[plan] = runs
        shown = [
            w for w, folder in FOLDERS.items() if (folder(plan) / "tables").is_dir()
        ]
        opening = every = ""
        if (path := results_dir(plan) / "verdict.txt").is_file():
            summary, _, lines = path.read_text(encoding="utf-8").partition("\n\n")
            verdict, _, notes = summary.partition("\n")
            notes = COMMAND.sub(r"`\g<0>`", notes)
            opening = f"**Plan {plan}, made here: {verdict}**\n\n{notes}\n\n"
            every = (
                "<details><summary>What the numbers are of, and every comparison</summary>\n\n"
                f"```text\n{lines}```\n\n</details>\n\n"
            )
        title = PLAN_TITLES.get(plan, f"Results: plan `{plan}`")
        text = f"({plan}-plan)=\n# {title}\n\n{opening}{every}"
        if runs.ids:
            text += f"A number leads to the [records](#{plan}-records) that it is made of.\n\n"
        for name in PRODUCTS:
            parts = ""
            for whose in shown:
                part = self.exhibits(runs, whose, name)
                if name in self.claims and plan in DECIDING and whose == COMMITTED:
                    part = self.apart(plan, name, part)
                parts += f"**{whose}**\n\n{part}" if part and len(shown) > 1 else part
            label = f"({plan}-{name})=\n"
            if label in self.claims.get(name, ""):
                label = ""  # is that of the page of claims
            text += f"{label}## {table_title(name)}\n\n{parts}" if parts else ""
        if shown:
            self.write(f"plans/{plan}.md", text)
        return opening

    def apart(self, plan: str, name: str, part: str) -> str:
        """Move claims to a page of their own; return what stands on the plan's page instead."""
        self.claims[name] += CLAIMS_OF.format(
            title=CLAIMS_TITLES[plan], plan=plan, name=name, part=part
        )
        if name != "claims":
            return ""
        counts = headline(judged(plan)[0])
        return f"{counts} [The claims, one by one](#{plan}-claims)\n\n"

    def exhibits(self, runs: Runs, whose: str, name: str) -> str:
        """Include a figure by its table's name, or one for each model, and the table; Markdown."""
        text = ""
        folder = FOLDERS[whose](runs.plan)
        copies = f"results/{'reference/' if whose == COMMITTED else ''}{runs.plan}"
        for path in sorted((folder / "figures").glob(f"{name}*.png")):
            alt = figure_alt(path.stem)
            if not alt:  # a figure of an earlier version, no longer drawn
                continue
            names = [name for name in PRODUCTS if path.stem.startswith(name)]
            if max(names, key=len) == name:
                self.copy(path, f"{copies}/figures/{path.name}")
                text += (
                    f"```{{figure}} /{copies}/figures/{path.name}\n:alt: {alt}\n\n"
                    f"{figure_caption(name)}\n```\n\n"
                )
        if (table := folder / "tables" / f"{name}.md").is_file():
            page = f"{copies}/tables/{name}.md"
            made = table.read_text(encoding="utf-8")
            # it has a title of its own here, and contents that list its parts
            if name in CLAIMS_PAGES:
                heading = claims_heading(table.parent)
                made = made.removeprefix(heading).removeprefix(TESTED_HEADING)
                made = TITLE.sub(r"### \1", made).replace("\n## ", "\n### ")
            made = self.localise(made, page)
            made, links = runs.link_table(whose, name, made)
            if (
                whose == COMMITTED and name != "published_ratios"
            ):  # its rows have no names
                # the dense model's number is the same in two plans: the first goes first
                self.cells = links | self.cells
            self.write(page, made)
            text += f"```{{include}} /{page}\n```\n\n"
            if whose == COMMITTED and name == "perplexity":
                text += windows_line(runs) + shared_line(runs.plan)
        return text

    def notebooks(self) -> None:
        """Write a page for each notebook: from a run here, its committed copy, or without outputs.

        The list of notebooks has their numbers, which their titles lack, and the minutes that each
        says it takes.
        """
        yours = YOURS.format("in its place")
        rows = "\n| notebook | question | minutes |\n| :-- | :-- | --: |\n"
        listed = "\n```{toctree}\n:hidden:\n\n"
        runs = [
            run for plan in PLANS if plan in plan_names() for run in read_plan(plan)
        ]
        for path in sorted(notebooks_dir().glob("*.ipynb")):
            made = [run for run in runs if run.notebook == path.stem]
            made.sort(key=lambda run: (PLANS.index(run.plan), nearness(run)))
            found = {
                run.executed_path: (f"Run here: {run.name}, plan {run.plan}.", run)
                for run in made
            }
            copied = [run for run in made if run.plan == COPIED_PLAN][:1]
            found |= {
                copy_path(path.stem): (
                    f"This run came with the repository; {yours}",
                    *copied,
                )
            }
            found |= {path: (f"Shown without outputs; {yours}",)}
            for where, (note, *run) in found.items():
                if page := as_it_ran(path.stem, where):
                    if where == path:  # JupyterLab has saved outputs of no run in it
                        for cell in page.cells:
                            if cell.cell_type == "code":
                                cell.update(outputs=[], execution_count=None)
                    self.notebook(page, note, f"notebooks/{path.name}")
                    self.shown |= {
                        (own.plan, own.id): f"notebooks/{path.name}" for own in run
                    }
                    break
            title = page.cells[0].source.partition("\n")[0].removeprefix("# ")
            listed += f"{path.stem[:2]} {title} <{path.stem}>\n"
            link = f"[{path.stem[:2]}]({path.name})"
            rows += f"| {link} | {title} | {told_minutes(path.stem)} |\n"
        with (self.folder / "notebooks" / "index.md").open(
            "a", encoding="utf-8"
        ) as index:
            index.write(f"{rows}{listed}```\n")

    def notebook(self, page: NotebookNode, note: str, name: str) -> None:
        """Write a notebook's page, with links into the book and a text for each picture."""
        annotate(page, note)
        section = ""
        for cell in page.cells:
            if cell.cell_type == "markdown":
                cell.source = self.localise(cell.source, name)
                section = (re.findall(r"(?m)^##? (.+)$", cell.source) or [section])[-1]
                if cell.source.startswith("## "):  # figures lead to it
                    cell.source = f"({Path(name).stem}-{cell.id})=\n{cell.source}"
            else:
                image = {"alt": f"Figure of the section: {section}"}
                if any(map(is_wide, cell.outputs)):
                    image["classes"] = "wide"
                cell.metadata["mystnb"] = {"image": image}
                if "touch_admm()" in cell.source:
                    # it computes in the page itself, whether the notebook was run or not
                    place = new_output("display_data", {"text/html": touch.PLACE})
                    cell.outputs = [place]
            for output in cell.get("outputs", []):
                if text := output.get("data", {}).get("text/markdown"):
                    linked = self.link_cells(self.localise(text, name))
                    output.data["text/markdown"] = linked
        self.write(name, nbformat.writes(page))


def is_wide(output: NotebookNode) -> bool:
    """Whether an output is a picture that would be too small to read on a phone."""
    png = output.get("data", {}).get("image/png")
    # the width stands in bytes 16 to 20 of the file
    return bool(png) and int.from_bytes(b64decode(png)[16:20]) > WIDE


def table_first(page: str) -> str:
    """A page of tables with its first table on top, above the words on it."""
    parts = page.rstrip().split("\n\n")
    (first, *_) = (at for at, part in enumerate(parts) if part.startswith("| "))
    return "\n\n".join([parts.pop(first), *parts]) + "\n"


def windows_line(runs: Runs) -> str:
    """Why the committed table's caption does not tell of windows, where that of yours does."""
    yours, ours = (
        bool(window_sentence(perplexity_runs(runs.records[whose].values())))
        for whose in (HERE, COMMITTED)
    )
    if ours or not yours:
        return ""
    return (
        "This caption does not say what other windows would move, because the committed records "
        "are of before runs kept the loss of each window.\n\n"
    )


def shared_line(plan: str) -> str:
    """On which runs to compare, where cells of a column are means of different ones."""
    shared = on_shared_samples(plan)
    if not shared:
        return ""
    return (
        "**To compare two cells of a column, take the calibration samples that both have**, since "
        "samples differ too. Dense and Magnitude read no calibration text, so they have no ±. "
        f"{shared}\n\n"
    )


def figure_caption(name: str) -> str:
    """What draws a figure, and the notebook's cell that draws it too."""
    notebook, cell = DRAWN_IN[name]
    return (
        f"Drawn by {{py:func}}`reproduction.figures.{name}_figure` from these records, as in "
        f"[this cell of notebook {notebook[:2]}](#{notebook}-{cell})."
    )


def home_of_claims(file: str) -> str:
    """The page of the book that a page of a plan's claims is part of, "" of any other file."""
    found = PRODUCT.fullmatch(file)
    if not found or found[2] not in CLAIMS_PAGES:
        return ""
    if found[1] in DECIDING and file.startswith("results/reference/"):
        return f"{found[2]}.html"
    return f"plans/{found[1]}.html"


def claims_line() -> str:
    """Count the verdicts on the claims by the committed records of the plan full."""
    return (
        "Code tests [claims](#full-claims) on the records of the plan `full`. "
        f"{headline(judged('full')[0])}\n"
    )


def main() -> int:
    """Write the book; returns Sphinx's exit code. If it is not 0, an earlier book stays."""
    here = Path(__file__).resolve().parent
    target = results_dir("book")
    with tempfile.TemporaryDirectory() as scratch:
        sources = Sources(Path(scratch, "pages"))
        made = Path(scratch, "html")
        sources.copy(here, "")
        openings = [opening for plan in PLANS if (opening := sources.plan(plan))]
        for name in COPIED:
            sources.copy(root() / name, name)
        sources.write("claims_line.txt", claims_line())
        sources.write("one_column.txt", sources.link_cells(one_column()))
        sources.write("in_short.txt", sources.localise(in_short(), "index.md"))
        begin = start().replace("(#", "(README.md#")
        sources.write("start.txt", sources.localise(begin, "index.md"))
        sources.write("column_setting.txt", column_setting())
        sources.write("plus_minus.txt", sources.localise(plus_minus(), "index.md"))
        sources.write("findings.txt", sources.localise(findings(), "results.md"))
        table = sources.folder / "results/reference/full/tables/perplexity.md"
        sources.write("perplexity.txt", table_first(table.read_text("utf-8")))
        sources.write("shared_line.txt", shared_line("full"))
        sources.write("pairs.txt", against_rivals("full"))
        shown = [
            name for name in PLANS if (sources.folder / f"plans/{name}.md").exists()
        ]
        pages = "".join(f"plans/{name}\n" for name in shown)
        sources.write("plans.txt", f"```{{toctree}}\n:maxdepth: 1\n\n{pages}```\n")
        for name, page in sources.claims.items():
            sources.write(f"{name}.md", page)
        sources.write("agreement.txt", "".join(openings) or NOTHING_RUN)
        lines = (opening.partition("\n\n")[0] for opening in openings)
        sources.write("agreement_line.txt", "\n\n".join(lines) or NOTHING_RUN)
        links = (
            f"{{py:obj}}`{name} <{home}>`" for name, home in public_names().items()
        )
        sources.write("public.txt", ", ".join(links) + ".\n")
        sources.notebooks()
        sources.write("runs.md", list_page([*sources.plans.values()]))
        for plan in sources.plans.values():
            for whose, folder in FOLDERS.items():
                records = folder(plan.plan) / "records"
                sources.copy(records, record_folder(whose, plan.plan))
            for name, text in plan.pages(sources.shown):
                sources.write(name, text)
        options = ["-q", "-W", "--keep-going", "-c", str(here)]
        if status := build_main([*options, str(sources.folder), str(made)]):
            return status
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(made, target, ignore=shutil.ignore_patterns(".*", "_sources"))
    sys.stdout.write(f"the book: {target / 'index.html'}\n")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (HelpersError, OSError) as error:
        sys.exit(f"the book was not written: {error}")
