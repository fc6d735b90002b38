"""Pages of runs: from a number in a table to its records, and from a record to what made it.

A run with a record has a page, whether the record is committed, was made here, or both. A cell of a
table leads to it, or, where a cell is made of several records, to the list of them on the page of
its plan. One page lists all runs.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import yaml
from docutils.nodes import make_id
from scipy import stats

from helpers.explore.names import display_name
from helpers.paths import reference_dir, results_dir, root
from reproduction.claim_words import verdict_words
from reproduction.claims import DECIDING
from reproduction.compare import main_number
from reproduction.fingerprint import fingerprint, is_current
from reproduction.labels import pipeline_title
from reproduction.markdown import (
    Table,
    format_number,
    text_table,
    to_markdown,
    with_half,
)
from reproduction.pages import barely, judged
from reproduction.plan import Run, plan_names, read_plan
from reproduction.records import Record, read_records, record_id, run_seconds
from reproduction.runs import half_interval, processor_of
from reproduction.tables import all_tables

HERE, COMMITTED = "Made here", "Committed"
FOLDERS = {HERE: results_dir, COMMITTED: reference_dir}
# of the records of a cell, beside their seed: what the cell is made of
SHOWN = {
    "perplexity": ("perplexity",),
    "variants": ("perplexity",),
    "published_ratios": ("perplexity",),
    "windows": ("perplexity",),
    "cost": ("forward_seconds", "solve_seconds", "prune_seconds", "evaluate_seconds"),
    "zero_shot": ("mean_acc",),
    "beyond": ("perplexity_layers", "perplexity", "perplexity_web", "total_seconds"),
}
DENSE = ("perplexity_dense", "perplexity_web_dense")  # of these the dense model's row
WORDS = {  # what the heads of such a table say
    "perplexity_layers": "perplexity before the repair",
    "perplexity_web": "perplexity on web text",
    "perplexity_dense": "perplexity of the dense model",
    "perplexity_web_dense": "that on web text",
}
OVER_WINDOWS = (
    "The number is made of the loss of each evaluation window in these records.\n\n"
)
# the titles of tables and figures, with the question that each answers
TITLES = {
    "perplexity": "Perplexity: which method damages the model least?",
    "windows": "Windows: what would another evaluation text move?",
    "claims": "Claims: do the paper's statements hold?",
    "claims_tested": "Claims: how was each tested?",
    "variants": "Variants: do a method's options matter?",
    "zero_shot": "Zero-shot: does the pruned model still answer questions?",
    "weight_update": "Weight update: which solver refits a layer best?",
    "convergence": "Convergence: how fast does ADMM reach a layer's optimum?",
    "mask": "Mask: which rule for choosing it is best?",
    "schedule": "Mask schedule: how fast should the mask grow?",
    "cost": "Cost: how many seconds, how much memory?",
    "beyond": "Beyond the paper: what do allocation and distillation add?",
    "published_ratios": "Published ratios: do other papers find the same?",
}
VERSION_NAMES = {"pruning-reproduction": "this project, when it ran"}
# in no list of pages, and not in the book's search: the page of all runs has one
FRONT = "---\norphan: true\nnosearch: true\n---"
SEVERAL = """\
A number that is the mean of several records, or compares some, leads here. Each record has a page.
"""
LIST = """\
# All runs

Every number of the tables is made of these runs. A run's page has what it measured, its parameters,
its processor, and the line that runs it again. Perplexities can be compared within a plan and a
notebook, of one model: others may be of other windows. Minutes can be compared where a run was
*alone*; others shared the machine.

<p class="find-runs" hidden>
<label>Find <input type="search" placeholder="admm-grad 60 seed1"></label> <output></output>
</p>

"""
SCRIPT = '\n<script src="_static/runs.js"></script>\n'


class Group(NamedTuple):
    """Records that one cell of a table, or several, are made of."""

    name: str  # of the table
    title: str
    text: str  # the number as it is printed; "" where the numbers are several
    ids: tuple[str, ...]


class Runs:
    """The runs of a plan that have a record."""

    def __init__(self, plan: str) -> None:
        self.plan = plan
        known = read_plan(plan) if plan in plan_names() else []
        self.runs = {run.id: run for run in known}
        self.records = {
            whose: read_by_id(folder(plan) / "records")
            for whose, folder in FOLDERS.items()
        }
        self.tables: dict[str, dict[str, list[Table]]] = {}
        self.groups: dict[str, dict[tuple[str, ...], Group]] = {w: {} for w in FOLDERS}
        # in which tables a record counts, and in which cells
        self.used: dict[str, dict[str, dict[str, None]]] = {}

    @property
    def ids(self) -> list[str]:
        """The ids of all runs with a record, sorted."""
        return sorted(set().union(*self.records.values()))

    @functools.cached_property
    def claims(self) -> dict[str, list[str]]:
        """By committed record, a line for each claim that it decides on, with the verdict."""
        if self.plan not in DECIDING:
            return {}
        verdicts, rows = judged(self.plan)
        just = barely()
        lines: dict[str, list[str]] = {}
        for claim in verdicts.itertuples():
            own = rows[rows["number"] == claim.number]
            link = (
                f'<a href="../../claims.html#claim-{claim.number}">{claim.number}</a>'
            )
            decisive = own["ids"][own["decides"]]
            for run_id in {each for ids in decisive for each in ids}:
                lines.setdefault(run_id, []).append(
                    f"- {link}, {claim.sentence.rstrip('.')}: {verdict_words(claim, own, just)}"
                )
        return lines

    def is_current(self, whose: str, run_id: str) -> bool:
        """Whether a record is of today's plan and code."""
        run, record = self.runs.get(run_id), self.records[whose][run_id]
        return bool(run) and is_current(
            record, run, FOLDERS[whose](self.plan) / "records"
        )

    # --- tables -------------------------------------------------------------------------------

    def link_table(self, whose: str, name: str, text: str) -> tuple[str, dict]:
        """Link each cell of a page of tables to its records; the page, and the links by cell.

        The key of a link is the first cell of its row with the printed number. A number that
        today's records do not give has no link: its table is of other ones.
        """
        if whose not in self.tables:
            records = self.records[whose].items()
            if whose == HERE:  # as `make tables` takes them
                records = [(k, r) for k, r in records if self.is_current(whose, k)]
            self.tables[whose] = all_tables([record for _, record in records])
        tables = iter(self.tables[whose].get(name, []))
        lines, links = [], {}
        rows: Iterator[tuple[list[str], list[Group | None]]] = iter(())
        for line in text.splitlines():
            if not line.startswith("| "):
                rows = iter(())
            elif line.startswith("| :--"):
                table = next(tables, None)
                rows = printed_rows(name, table) if table else iter(())
            else:
                expected, groups = next(rows, ([], []))
                cells = line[2:-2].split(" | ")
                for column, (wanted, group) in enumerate(
                    zip(expected, groups, strict=True)
                ):
                    if group and wanted == cells[column] != "–":
                        target = self.target(whose, group)
                        links[cells[0], wanted] = target
                        cells[column] = f"[{wanted}]({target})"
                line = f"| {' | '.join(cells)} |"
            lines.append(line)
        return "\n".join(lines) + "\n", links

    def target(self, whose: str, group: Group) -> str:
        """Where a cell leads: to the page of its record, or to the list of its records."""
        target = ""
        if len(group.ids) > 1:
            groups, key = self.groups[whose], (group.name, *group.ids)
            if groups.setdefault(key, group).text != group.text:
                groups[key] = groups[key]._replace(text="")  # several numbers lead here
            target = f"#{self.anchor(whose, groups[key])}"
        for run_id in group.ids:
            places = self.used.setdefault(run_id, {}).setdefault(group.name, {})
            place = f"[{group.title}]({target})" if target else group.title
            if target and group.name == "perplexity" and group.text:
                place += f" (one of {len(group.ids)} behind {group.text})"
            places[place] = None  # a dictionary keeps an order
        return target or f"/runs/{self.plan}/{group.ids[0]}.md"

    def anchor(self, whose: str, group: Group) -> str:
        """The name of a list of records."""
        number = list(self.groups[whose].values()).index(group)
        here = "here-" if whose == HERE else ""
        return make_id(f"{self.plan}-{here}{group.name}-{group.title}-{number}")

    # --- pages --------------------------------------------------------------------------------

    def pages(self, shown: Mapping[tuple[str, str], str]) -> Iterator[tuple[str, str]]:
        """The pages, name and Markdown, of the plan's cells and of each of its runs.

        Args: shown, notebooks with outputs in this book, by plan and id of their run.
        """
        yield f"runs/{self.plan}.md", self.cells_page()
        for run_id in self.ids:
            page = shown.get((self.plan, run_id))
            yield f"runs/{self.plan}/{run_id}.md", self.run_page(run_id, page)

    def cells_page(self) -> str:
        """The page that lists the records of each cell that is made of several."""
        text = f"{FRONT}\n\n({self.plan}-records)=\n"
        text += f"# Records behind the numbers of plan {self.plan}\n\n{SEVERAL}\n"
        for whose, groups in self.groups.items():
            name = ""
            for group in groups.values():
                if group.name != name:
                    name = group.name
                    here = ", made here" if whose == HERE else ""
                    text += f"## {table_title(name)}{here}\n\n"
                title = group.title + (f": {group.text}" if group.text else "")
                text += f"({self.anchor(whose, group)})=\n### {title}\n\n"
                text += self.list_records(whose, group)
        return text

    def list_records(self, whose: str, group: Group) -> str:
        """A table of the records of a group."""
        records = [self.records[whose][run_id] for run_id in group.ids]
        rows = []
        names = SHOWN.get(group.name, ())
        if group.name == "beyond" and group.title.startswith(display_name("dense")):
            names = DENSE
        for run_id, record in zip(group.ids, records, strict=True):
            row = {"run": f"[{run_title(record)}](/runs/{self.plan}/{run_id}.md)"}
            for name in names:
                row[name] = format_number(metric(record, name))
            row["minutes"] = f"{minutes(record):.1f}"
            rows.append(row)
        frame = pd.DataFrame(rows)
        frame = frame.loc[:, (frame != "–").any()]
        columns = [name for name in frame if name.startswith("perplexity")]
        draws = draws_of(records, columns)
        formula = ""
        if len(draws) > 1:
            means = [
                with_half(draws[c].mean(), half_interval(draws[c])) for c in columns
            ]
            # on one line: a space that does not break
            row = [f"**{text}**".replace(" ", "\xa0") for text in means]
            row = dict(zip(columns, row, strict=True)) | {"run": "**mean**"}
            frame.loc[len(frame)] = [row.get(name, "") for name in frame]
            formula = mean_formula(draws[columns[0]])
        heads = [WORDS.get(head, head).replace("_", " ") for head in frame]
        note = OVER_WINDOWS if group.name == "windows" else formula
        return text_table(heads, frame.values.tolist()) + f"\n{note}"

    def run_page(self, run_id: str, shown: str | None) -> str:
        """The page of a run: numbers, the line that runs it again, parameters, machine and code."""
        found = {w: own[run_id] for w, own in self.records.items() if run_id in own}
        record = [*found.values()][-1]  # the committed one if there is one
        notebook = f"[{record['notebook']}](/notebooks/{record['notebook']}.ipynb)"
        run = self.runs.get(run_id)
        timed = "; its seconds are only rough"
        if record.get("timed"):
            timed = ", timed alone"
        parts = [
            FRONT,
            f"# {run_title(record)}",
            f"Run `{run_id}` of the [plan {self.plan}](#{self.plan}-records), made by "
            f"{notebook} on {record['created'][:10]}, in {minutes(record):.1f} minutes, on "
            f"{processor_of(record) or 'an unknown processor'}{timed}. [All runs](/runs.md)",
            metrics_table(found),
            "\n\n".join(self.code_note(whose, own) for whose, own in found.items()),
            "## Run it again",
            self.again(run_id, run),
        ]
        if shown:
            parts.append(f"[The notebook as it ran](/{shown})")
        else:
            parts.append(
                "No copy with its outputs is in this book; a run leaves one in "
                f"`results/{self.plan}/runs/{run_id}.ipynb`."
            )
        if used := self.used.get(run_id):
            parts.append("## Where it counts")
            parts.append("A link leads to all the runs of a number.")
            parts.append(
                "\n".join(
                    f"- [{name.replace('_', ' ')}](#{self.plan}-{name}): {'; '.join(places)}"
                    for name, places in used.items()
                )
            )
        if claims := self.claims.get(run_id):
            parts += ["## Claims that it is evidence for or against", "\n".join(claims)]
        parts += ["## Parameters", parameters_table(record["parameters"], run)]
        parts += ["## Machine, code and data", self.provenance(found)]
        if layers := record["layers"]:
            parts.append(layers_text(layers))
        return "\n\n".join(parts) + "\n"

    def again(self, run_id: str, run: Run | None) -> str:
        """The line that runs it again."""
        if run is None:
            return "The plan has this run no longer; its parameters are below."
        text = "```{code-block} text\n:class: again\n\n"
        return (
            f"{text}make reproduce PLAN={self.plan} ONLY={run_id}\n```\n\n"
            "On the same kind of processor, with the same packages and number of threads, all "
            "digits of its results should be the same. On "
            "others they may differ: [by how much](/docs/verdict.md) depends on the method."
        )

    def code_note(self, whose: str, record: Record) -> str:
        """A sentence: the record's file, and whether it is of today's code."""
        run_id = record_id(record)
        file = f"/{record_folder(whose, self.plan)}/{run_id}.json"
        run = self.runs.get(run_id)
        text = "was made by **earlier code**: today's may give other digits."
        if run is None:
            text = "is of a run that the plan has no longer."
        elif run.effective != defaults_of(run) | dict(record["parameters"]):
            text = "is of **other parameters** than the plan has today."
        elif self.is_current(whose, run_id):
            folder = FOLDERS[whose](self.plan) / "records"
            text = (
                "was made by an earlier version of the code, and `make same` has shown that "
                "today's computes the same on small probes and the plan smoke, bit for bit. "
                "This run itself was not repeated."
            )
            if record["fingerprint"] == fingerprint(run, folder):
                text = "was made by **today's code**."
        name = "committed record" if whose == COMMITTED else "record of your run"
        return f"[The {name}]({file}) {text}"

    def provenance(self, found: Mapping[str, Record]) -> str:
        """A table of the machine, the commit and the versions of each record."""
        columns = {}
        for whose, record in found.items():
            git = record["git"] or {}
            commit = commit_link(git["commit"]) if git else "–"
            columns[whose] = {
                "processor": processor_of(record) or "–",
                "device": record["device"],
                "minutes": f"{minutes(record):.1f}",
                "timed alone": "yes" if record.get("timed") else "no",
                "peak memory (GB)": f"{record['peak_memory_bytes'] / 1e9:.2f}",
                "made": record["created"][:16].replace("T", " ") + " UTC",
                "commit": commit + (" with changes" if git.get("dirty") else ""),
                **{VERSION_NAMES.get(k, k): v for k, v in record["versions"].items()},
                **hashes(record),
            }
        frame = pd.DataFrame(columns).fillna("–")
        heads = ["", *frame] if len(frame.columns) > 1 else ["", ""]
        return text_table(heads, [[name, *row] for name, *row in frame.itertuples()])

    def rows(self) -> Iterator[list[str]]:
        """The rows of the page of all runs, each beside its other seeds."""
        found = {
            run_id: [own[run_id] for own in self.records.values() if run_id in own][-1]
            for run_id in self.ids
        }
        for run_id, record in sorted(
            found.items(), key=lambda item: (item[1]["notebook"], run_title(item[1]))
        ):
            yield [
                f"[{run_title(record)}](/runs/{self.plan}/{run_id}.md)",
                self.plan,
                format_number(main_perplexity(record)),
                f"{minutes(record):.1f}",
                "yes" if record.get("timed") else "",
                record["notebook"][:2],
                processor_of(record) or "–",
                record["created"][:10],
            ]


def read_by_id(folder: Path) -> dict[str, dict[str, Any]]:
    """The records of a folder by their ids, in the order of their files."""
    return {record_id(record): record for record in read_records(folder)}


def run_title(record: Record) -> str:
    """A run in words: "ADMM-Grad at 60 %, seed 1", or the name that its plan gives it."""
    parameters = record["parameters"]
    if not {"method", "pattern"} <= parameters.keys():
        return f"notebook {record['notebook'][:2]}, {record['name']}"
    title = display_name(pipeline_title(parameters))
    if parameters.get("allocation") and parameters.get("repair"):
        name, _, at = title.rpartition(" at ")
        title = f"recipe ({name}) at {at}"  # `make reproduce` calls it a recipe
    if parameters["model"] != "embedded":
        title += f", {parameters['model']}"
    if not (record["data"] or {}).get("calibration"):  # it read no text
        part = parameters.get("task_part", 0)
        return f"{title}, questions {part + 1}" if part else title
    return f"{title}, seed {parameters['calibration_seed']}"


def table_title(name: str) -> str:
    """The title of a table by the name of its file."""
    return TITLES.get(name, name)


def defaults_of(run: Run) -> dict[str, Any]:
    """The defaults of a run's parameters."""
    return {name: run.defaults[name] for name in run.effective}


def record_folder(whose: str, plan: str) -> str:
    """Where the book has the files of records."""
    return f"results/{'reference/' if whose == COMMITTED else ''}{plan}/records"


def commit_link(commit: str) -> str:
    """A commit: a link if the project says where it is kept, else the command that shows it."""
    address = yaml.safe_load((root() / "CITATION.cff").read_text("utf-8"))
    address = address["repository-code"]
    if "/OWNER/" in address:  # until `make owner`
        return f"`git show {commit[:12]}`"
    return f"[`{commit[:12]}`]({address}/commit/{commit})"


def draws_of(records: list[Record], columns: list[str]) -> pd.DataFrame:
    """Metrics of records that differ in their seed alone, a row a seed; empty for others.

    Several records of a seed count once, with their mean, as in the tables.
    """
    parameters = [dict(record["parameters"]) for record in records]
    seeds = [own.pop("calibration_seed") for own in parameters]
    if not columns or parameters.count(parameters[0]) < len(parameters):
        return pd.DataFrame()
    numbers = [[metric(record, name) for name in columns] for record in records]
    return pd.DataFrame(numbers, seeds, columns).groupby(level=0).mean()


def mean_formula(draws: pd.Series) -> str:
    """How their mean and what stands behind its ± are worked out, of the first numbers shown."""
    n = len(draws)
    text = f"Mean over {n} calibration samples (seeds)."
    if not half_interval(draws) > 0:
        return f"{text} ± would need three.\n\n"
    t = stats.t.ppf(0.975, n - 1)
    return (
        f"{text} ± is half of Student's 95 % interval: t · s / √n, with the standard deviation s. "
        f"In the first column {t:.3f} · {draws.std():.3f} / √{n} = {half_interval(draws):.3f}.\n\n"
    )


def metric(record: Record, name: str) -> float:
    """A metric's value, NaN where a record has none of that name."""
    return record["metrics"].get(name, {"value": float("nan")})["value"]


def main_perplexity(record: Record) -> float:
    """The perplexity that `make reproduce` prints of a run, NaN where it has none.

    That of notebook 00 is one of three, and named after its method.
    """
    name, value = main_number(record) or ("", math.nan)
    return value if name == "perplexity" else math.nan


def minutes(record: Record) -> float:
    """How long a run took."""
    return run_seconds(record) / 60


def printed_rows(
    name: str, table: Table
) -> Iterator[tuple[list[str], list[Group | None]]]:
    """The printed cells of each row of a table, and the records of each."""
    _, _, *lines = to_markdown(table.frame, table.spread).splitlines()
    heads = [display_name(str(column)) for column in table.frame]
    every = {tuple(dict.fromkeys(ids)) for ids in table.records.to_numpy().ravel()}
    every -= {()}
    for line, row in zip(lines, table.records.itertuples(index=False), strict=True):
        cells = line[2:-2].split(" | ")
        unique = [tuple(dict.fromkeys(ids)) for ids in row]
        # words that tell rows of one name apart
        label = [cells[0]]
        label += [cells[heads.index(h) + 1] for h in ("at", "method") if h in heads]
        groups: list[Group | None] = [None]
        for head, text, ids in zip(heads, cells[1:], unique, strict=True):
            if len(every) == 1:
                title, text = "all rows", ""
            elif len(set(unique) - {()}) == 1:
                title, text = ", ".join(label), ""
            elif (name, head) == ("variants", "default"):  # the same of all options
                method = cells[0].partition(" (")[0]
                title = ", ".join([method, *label[1:], "with its default options"])
            else:
                title = ", ".join([*label, head])
            groups.append(Group(name, title, text.strip("*"), ids) if ids else None)
        yield cells, groups


def metrics_table(found: Mapping[str, Record]) -> str:
    """A table of what a run measured, committed and here; a standard error stands behind its ±."""
    columns = {}
    for whose, record in found.items():
        metrics = record["metrics"]
        texts = {}
        for name, value in metrics.items():
            if name.endswith("_stderr"):
                continue
            unit = {"1": "", "bytes": "GB"}.get(value["unit"], value["unit"])
            scale = 1e9 if unit == "GB" else 1
            text = format_number(value["value"] / scale)
            if f"{name}_stderr" in metrics:
                text += f" ± {format_number(metric(record, f'{name}_stderr'))}"
            texts[name.replace("_", " ")] = f"{text} {unit}".strip()
        columns[whose] = texts
    frame = pd.DataFrame(columns).fillna("–")
    heads = ["measured", *(frame if len(frame.columns) > 1 else [""])]
    return text_table(heads, [[name, *row] for name, *row in frame.itertuples()])


def parameters_table(parameters: Mapping[str, Any], run: Run | None) -> str:
    """A table of parameters, those first that differ from their notebook's defaults, in bold."""
    defaults = run.defaults if run else {}
    own = [k for k, v in parameters.items() if run and v != defaults.get(k)]
    rows = []
    for name in [*own, *(name for name in parameters if name not in own)]:
        text = f"`{parameters[name]!r}`".replace("|", "\\|")
        rows.append([f"**{name}**", f"**{text}**"] if name in own else [name, text])
    note = "Bold: not the notebook's default.\n\n" if own else ""
    return note + text_table(["parameter", "value"], rows)


def hashes(record: Record) -> dict[str, str]:
    """What a record knows of its model and texts: packages, and how hashes begin."""
    known = [("model", record["model"] or {}), *(record["data"] or {}).items()]
    found = {}
    for name, own in known:
        if not isinstance(own, Mapping):
            continue
        if own.get("package"):
            found[f"{name} text"] = own["package"]
        if own.get("sha256"):
            found[f"{name}, sha256 begins"] = f"`{own['sha256'][:16]}`"
        if own.get("tokens"):
            found[f"{name}, its tokens' hash"] = f"`{own['tokens']}`"
    return found


def layers_text(layers: list[dict[str, Any]]) -> str:
    """The relative error of each pruned layer, a row for each block, in a fold."""
    frame = pd.DataFrame(layers)
    frame["layer"] = frame["name"].str.rpartition(".")[2]
    errors = frame.pivot_table("error", "block", "layer", sort=False)
    text = errors.to_string(float_format="{:#.2g}".format)
    return (
        f"<details><summary>The error of each of {len(layers)} layers</summary>\n\n"
        f"```text\n{text}\n```\n\n</details>"
    )


def list_page(plans: list[Runs]) -> str:
    """The page of all runs: a table that a script sorts and searches."""
    heads = ["run", "plan", "perplexity", "minutes", "alone", "notebook"]
    heads += ["processor", "made"]
    frame = pd.DataFrame((row for plan in plans for row in plan.rows()), columns=heads)
    note = ""
    if frame["processor"].nunique() == 1:  # no reader needs it in each row
        note = f"All were made on {frame.pop('processor')[0]}.\n\n"
    return LIST + note + text_table([*frame], frame.to_numpy().tolist()) + SCRIPT
