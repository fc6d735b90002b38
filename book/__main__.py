"""Write the book, results/book/index.html: `python -m book`.

Its pages are gathered in a temporary folder that is laid out as the project is, so that the links
between them hold; Sphinx makes HTML of them. Nothing is computed: tables and figures are the
committed ones and those made here, and a notebook is shown as it ran here, else without outputs.
"""

from __future__ import annotations

import importlib.util
import inspect
import os
import re
import shutil
import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path

import nbformat

import helpers
from helpers.paths import notebooks_dir, reference_dir, results_dir, root
from helpers.records import read_records
from helpers.results.describe import describe

HERE = Path(__file__).resolve().parent
PLANS = ("laptop", "full", "smoke", "t4", "paper")
# the page of a plan: what each section shows, figures and tables alike by name
TOPICS = {
    "In one picture": ["summary"],
    "The paper's claims": ["claims"],
    "Perplexity": ["perplexity", "layer_error"],
    "Changed options": ["variants"],
    "Zero-shot tasks": ["zero_shot"],
    "The weight update": ["weight_update", "weight_update_median", "convergence"],
    "The growing mask": ["mask", "schedule"],
    "The grams": ["spectrum"],
    "What it cost": ["cost"],
    "Beside published figures": ["published"],
}
# of several runs of a notebook, those that a reader wants first
BEST_RUNS = ("default", "tour", "admm-grad-60", "admm-grad-50", "my-method-60", "tables")
# the modules of the core in the order in which the paper is read; others follow by name
READING = "gram masks admm sparsegpt methods capture models prune evaluate gradient_methods study"
COPIED = ("README.md", "CHANGES.md", "docs", "results/families.md", "results/published", "helpers/own")
WIDGET = "application/vnd.jupyter.widget-view+json"
BADGE = re.compile(r"\[!\[[^\]]*\]\(http[^)]*\)\]\([^)]*\)\n*")
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((?!\w+:|#)([^)#\s]+)\)")
PRODUCT = re.compile(r"results/reference/(\w+)/(?:tables|figures)(?:/(\w+)\.\w+)?")


class Sources:
    """The pages of the book in a folder that mirrors the project."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, name: str, *blocks: str) -> None:
        """Write a page of blocks of Markdown."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n\n".join(blocks) + "\n", encoding="utf-8")

    def copy(self, source: Path, name: str) -> None:
        """Copy a file or a folder."""
        target = self.folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, dirs_exist_ok=True)
        else:
            shutil.copyfile(source, target)

    def localise(self, text: str, page: str) -> str:
        """Markdown of a page with its links leading to other pages, or to a copy of the file."""

        def link(match: re.Match[str]) -> str:
            words, target = match.groups()
            path = os.path.normpath(os.path.join(os.path.dirname(page), target))
            if product := PRODUCT.fullmatch(path):
                return f"[{words}](#{product[1]}-{product[2] or 'plan'})"
            if path.startswith("helpers/own/"):
                return f"[{words}](#own-file)"
            if path.startswith("helpers/"):  # a wing's module is on the page of its wing
                return f"{{py:mod}}`{words} <{'.'.join(Path(path).with_suffix('').parts[:2])}>`"
            if (root() / path).is_dir():
                return words
            if (root() / path).is_file() and not (self.folder / path).exists():
                self.copy(root() / path, path)
            return match[0]

        return LINK.sub(link, text)

    def pages(self) -> None:
        """What is written: the pages of this folder, and those of the project."""
        for page in HERE.glob("*.md"):
            self.copy(page, page.name)
        for name in COPIED:
            self.copy(root() / name, name)
        for plan in PLANS:
            self.copy_products(reference_dir(plan), f"results/reference/{plan}")
            self.copy_products(results_dir(plan), f"results/{plan}")
        self.copy(reference_dir("bench"), "results/reference/bench")
        for path in list(self.folder.rglob("*.md")):
            text = self.localise(path.read_text("utf-8"), str(path.relative_to(self.folder)))
            path.write_text(text, encoding="utf-8")

    def copy_products(self, folder: Path, name: str) -> None:
        """Copy the tables and figures of a plan."""
        for kind in ("tables", "figures"):
            if (folder / kind).is_dir():
                self.copy(folder / kind, f"{name}/{kind}")

    def plans(self) -> None:
        """A page for each plan with tables: the verdict on those made here, all by topic."""
        for plan in PLANS:
            shown = {"Made here": results_dir(plan), "Committed": reference_dir(plan)}
            shown = {name: folder for name, folder in shown.items() if (folder / "tables").is_dir()}
            blocks = [f"({plan}-plan)=", f"# Plan `{plan}`", " and ".join(shown) + "."]
            if "Made here" in shown:
                command = [sys.executable, "-m", "helpers.runner", "verdict", "--plan", plan]
                said = subprocess.run(
                    command, cwd=root(), capture_output=True, text=True, check=False
                )
                blocks += ["## The verdict", f"```text\n{said.stdout}{said.stderr}```"]
            for topic, names in TOPICS.items():
                parts = {name: exhibits(folder, names) for name, folder in shown.items()}
                parts = {name: part for name, part in parts.items() if part}
                if parts:
                    blocks += [f"({plan}-{name})=" for name in names] + [f"## {topic}"]
                for name, part in parts.items():
                    blocks += [f"**{name}**", *part] if len(shown) > 1 else part
            if shown:
                self.write(f"plans/{plan}.md", *blocks)

    def notebooks(self) -> None:
        """A page for each notebook, and a list of the other runs that were made here."""
        names, others = [], []
        for path in sorted(notebooks_dir().glob("*.ipynb")):
            runs = [
                (plan, run)
                for plan in PLANS
                for run in sorted((results_dir(plan) / "runs").glob(f"{path.stem}--*.ipynb"), key=preference)
                if not run.stem.endswith(".failed")
            ]
            note = "Shown as it is written: it has not been run here."
            if runs:
                plan, best = runs[0]
                note = f"As it ran here: `{best.stem.partition('--')[2]}` of the plan `{plan}`."
            self.notebook(runs[0][1] if runs else path, f"notebooks/{path.name}", note)
            names.append(path.stem)
            for plan, run in runs[1:]:
                self.copy(run, f"runs/{plan}/{run.name}")
                others.append(f"- {{download}}`{plan}: {run.stem} <../runs/{plan}/{run.name}>`")
        blocks = ["# Notebooks", "```{toctree}", "\n".join(names), "```"]
        if others:
            blocks += ["## Other runs made here", "Each is a notebook to download.", "\n".join(others)]
        self.write("notebooks/index.md", *blocks)

    def notebook(self, source: Path, name: str, note: str) -> None:
        """Copy a notebook without what only a kernel or the network could show."""
        book = nbformat.read(source, as_version=4)
        book.metadata.pop("widgets", None)
        section = ""
        for cell in book.cells:
            if cell.cell_type == "markdown":
                cell.source = self.localise(BADGE.sub("", cell.source), name)
                section = (re.findall(r"(?m)^##? (.+)$", cell.source) or [section])[-1]
                continue
            cell.metadata["mystnb"] = {"image": {"alt": f"Figure of the section: {section}"}}
            cell.outputs = [o for o in cell.outputs if WIDGET not in o.get("data", {})]
            if "colab-setup" in cell.metadata.get("tags", []):
                cell.metadata["tags"] = ["remove-cell"]
        title, _, rest = book.cells[0].source.partition("\n")
        book.cells[0].source = f"{title}\n\n*{note}*\n{rest}"
        self.write(name, nbformat.writes(book))

    def api(self) -> None:
        """A page for each module of the core and for each package below it."""
        folder = root() / "helpers"
        core = [path.stem for path in folder.glob("[!_]*.py")]
        order = READING.split()
        core.sort(key=lambda name: (order.index(name) if name in order else len(order), name))
        packages = sorted(path.parent.name for path in folder.glob("*/__init__.py"))
        for name in core + packages:
            module = import_module(f"helpers.{name}")
            documented = [module.__name__]
            if name in packages and not hasattr(module, "__all__"):
                parts = sorted((folder / name).glob("[!_]*.py"))
                documented += [f"helpers.{name}.{path.stem}" for path in parts]
            directives = [f".. automodule:: {item}\n   :members:" for item in documented]
            self.write(f"api/{name}.md", f"# {name}", *map(rst, directives))
        names = [public_name(name) for name in helpers.__all__]
        self.write(
            "api/index.md",
            "# The code",
            "`from helpers import …` offers: " + ", ".join(names) + ".",
            "## The core: what decides a number",
            *contents(core),
            "## Beside it",
            *contents(packages),
        )


def preference(run: Path) -> tuple[int, str]:
    """How much a reader wants an executed notebook, for sorting."""
    name = run.stem.partition("--")[2]
    return (BEST_RUNS.index(name) if name in BEST_RUNS else len(BEST_RUNS), name)


def exhibits(folder: Path, names: list[str]) -> list[str]:
    """The tables of some names in a plan's folder, then the figures, as Markdown."""
    copy = "../results/" + ("reference/" if folder.parent.name == "reference" else "") + folder.name
    tables = [name for name in names if (folder / "tables" / f"{name}.md").is_file()]
    figures = [name for name in names if (folder / "figures" / f"{name}.png").is_file()]
    blocks = [f"```{{include}} {copy}/tables/{name}.md\n```" for name in tables]
    for name in figures:
        alt = describe(name, read_records(folder / "records")).reading
        blocks.append(f"```{{image}} {copy}/figures/{name}.png\n:alt: {alt}\n```")
    return blocks


def rst(text: str) -> str:
    """reStructuredText within Markdown."""
    return f"```{{eval-rst}}\n{text}\n```"


def public_name(name: str) -> str:
    """A name that `helpers` offers, linked to where it is documented."""
    home = getattr(getattr(helpers, name), "__module__", "helpers")
    return f"{{py:obj}}`{name} <{'.'.join(home.split('.')[:2])}.{name}>`"


def contents(modules: list[str]) -> list[str]:
    """A list of modules with the first line of each docstring, and their table of contents."""
    about = {name: inspect.getdoc(import_module(f"helpers.{name}")) for name in modules}
    lines = [f"- {{doc}}`{name}`: {text.splitlines()[0]}" for name, text in about.items()]
    return ["\n".join(lines), "```{toctree}\n:hidden:\n\n" + "\n".join(modules) + "\n```"]


def main() -> int:
    """Write the book; the exit code is Sphinx's. A book that is there stays until a new one is."""
    if importlib.util.find_spec("myst_nb") is None:
        sys.stderr.write("the book needs Sphinx and myst-nb: install them with make setup\n")
        return 1
    from sphinx.cmd.build import build_main

    target = results_dir("book")
    with tempfile.TemporaryDirectory() as name:
        sources = Sources(Path(name, "sources"))
        for gather in (sources.pages, sources.plans, sources.notebooks, sources.api):
            gather()
        made = Path(name, "html")
        options = ["-q", "-W", "--keep-going", "-b", "html", "-c", str(HERE)]
        if status := build_main([*options, str(sources.folder), str(made)]):
            return status
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(made, target, ignore=shutil.ignore_patterns(".*"))
    sys.stdout.write(f"the book: {target / 'index.html'}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
