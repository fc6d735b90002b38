"""What `make reproduce` prints at its end, for a stranger who reads it in half a minute.

First how many runs reproduce ours and, if some do not, which; then the perplexities, with what they
are of; then the machine and how far numbers are from ours; last where everything lies and what to
do next. All else is in verdict.txt, for which `how_to_read` has what belongs to the numbers.
"""

import os
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from helpers.explore.names import display_name
from helpers.paths import results_dir
from reproduction.compare import (
    CHECKS_README,
    WIDTH,
    Verdict,
    as_list,
    beside_the_table,
    differences,
    few_questions,
    machine_and_numbers,
    ranks,
    trouble,
    verdict_line,
    without_a_pair,
)
from reproduction.markdown import Table, beside, listed, to_markdown
from reproduction.pages import column_minutes
from reproduction.pipelines import BASE
from reproduction.plan import plan_names
from reproduction.records import Record, record_id
from reproduction.runs import common_parameters, full_name, perplexity_runs
from reproduction.tables import (
    middle_and_ends,
    perplexity_tables,
    samples_per_cell,
    window_spread,
)

COMPARE = "Compare rows, not single numbers"
MOST = 8  # runs that are named if they do not agree; verdict.txt names all


def ending(
    verdict: Verdict,
    plan: str,
    records: Sequence[Record],
    committed: Sequence[Record],
) -> str:
    """The end of `make reproduce`, from the verdict to what to do next.

    records: those made here; committed: those of the same runs.
    """
    parts = [
        verdict_line(verdict),
        as_list([*trouble(verdict, plan, MOST), *without_a_pair(verdict)]),
        differences(verdict),
        perplexities(records, committed, plan),
        few_questions(records),
        machine_paragraph(verdict),
        where_and_next(plan),
    ]
    return "\n\n".join(filter(None, parts))


# ------------------------------------------------------------------ the perplexities


def perplexities(
    records: Sequence[Record], committed: Sequence[Record], plan: str
) -> str:
    """The tables of perplexity in Markdown, with our numbers in brackets where digits differ.

    Below each is which method is lowest, and how to read it; "" without a perplexity.
    """
    made, ours = map(perplexity_tables, (records, committed))
    if len(made) != len(ours):  # some models or windows have no committed record
        ours = [None] * len(made)
    texts = []
    for table, other in zip(made, ours, strict=True):
        frame = beside(table, other) if other else table.frame
        spread = pd.DataFrame() if other else table.spread
        own = [run for run in records if record_id(run) in _ids(table)]
        below = f"{lowest(table.frame)}\n{reading(table, own, plan)}".strip()
        texts.append(
            f"{_heading(frame, bool(other))}\n\n{to_markdown(frame, spread)}\n{below}"
        )
    return "\n\n".join(texts)


def _heading(cells: pd.DataFrame, compared: bool) -> str:
    """What stands above a table of perplexity, and whether its digits are ours."""
    text = "Perplexity (lower is better; –: not run)"
    if not compared:
        return f"{text}:"
    if cells.map(lambda cell: "(" in cell).any(axis=None):
        return f"{text}, with ours in brackets where the digits differ:"
    return f"{text}, digit for digit ours:"


def _ids(table: Table) -> set[str]:
    """The records that a table is made of."""
    return {each for ids in table.records.to_numpy().ravel() for each in ids}


def lowest(perplexities: pd.DataFrame) -> str:
    """Which method has the lowest perplexity in each column of a table, in a sentence or two.

    "" where no column has two methods beside the dense model.
    """
    pruned = perplexities.loc[
        [not row.startswith("dense") for row in perplexities.index]
    ]
    pruned = pruned.loc[:, pruned.count() > 1]
    if pruned.empty:
        return ""
    columns: dict[str, list[str]] = {}
    for at, method in pruned.idxmin().items():
        columns.setdefault(method, []).append(at)
    parts = []
    for name, at in columns.items():
        paper = ", the paper's method," if name == BASE else ""
        verb = "" if parts else " is lowest"  # said once
        where = f"at {listed(at)}"
        if 1 < len(at) == len(perplexities.columns):
            where = "in every column"
        parts.append(f"{display_name(name)}{paper}{verb} {where}")
    text = f"{'; '.join(parts)}."
    if "alps" not in perplexities.index:
        text += " (ALPS, in README, was not run.)"
    return textwrap.fill(text, WIDTH)


def reading(table: Table, records: Sequence[Record], plan: str) -> str:
    """What a table of perplexity is of, and what may be compared in it, in a few lines."""
    runs = perplexity_runs(records)
    common = common_parameters(records)
    model = full_name("model", common["model"]).partition(" (")[0]
    windows = common["windows"]
    text = (
        f"{model} on {windows or 'all'} window{'s' * (windows != 1)} of text, "
        f"{_samples(runs, table)}."
    )
    lines = filter(None, [text, _other_windows(runs, plan)])
    return "\n".join(textwrap.fill(line, WIDTH) for line in lines)


def _samples(runs: pd.DataFrame, table: Table) -> str:
    """On how many samples of calibration text methods were pruned, and what that allows."""
    counts = samples_per_cell(runs)
    if counts.empty:
        return f"no calibration text. {COMPARE}"
    ends = sorted({counts.min(), counts.max()})
    text = f"{' to '.join(map(str, ends))} calibration sample{'s' * (ends != [1])}"
    if table.spread.gt(0).any(axis=None):
        return f"{text} (±: half of a 95 % interval over them). {COMPARE}"
    decide = "one sample decides" if ends == [1] else "fewer than three samples decide"
    return f"{text}. {COMPARE}; {decide} nothing"


def _other_windows(runs: pd.DataFrame, plan: str) -> str:
    """What another choice of evaluation windows could move; "" where records do not tell."""
    alone, ratios, _ = window_spread(runs)
    if alone.empty:
        return ""
    text = (
        "Other windows could move all perplexities together by about "
        f"{100 * np.nanmedian(alone):.0f} %"
    )
    found = middle_and_ends(ratios)
    if not found:
        return f"{text}."
    low, _, high = found
    span = low if low == high else f"{low} to {high}"
    without = " (without Magnitude)" if "magnitude" in ratios.index else ""
    path = os.path.relpath(results_dir(plan) / "tables" / "windows.md")
    return f"{text}, their ratios to ADMM-Grad's by {span} %{without}: {path}."


def how_to_read(records: Iterable[Record]) -> str:
    """For verdict.txt: what each table of perplexity is of, and what stands beside it."""
    records = list(records)
    notes = [
        textwrap.fill(table.note, WIDTH, break_on_hyphens=False)
        for table in perplexity_tables(records)
    ]
    return "\n\n".join(filter(None, [*notes, beside_the_table(records)]))


# ------------------------------------------------------------------ the machine, the files


def machine_paragraph(verdict: Verdict) -> str:
    """Your processor and ours, and whether that shows: a paragraph, with a list if it does."""
    if not verdict.pairs:
        return ""
    first, *moved = [*machine_and_numbers(verdict), *ranks(verdict)]
    return "\n".join(filter(None, [textwrap.fill(first, WIDTH), as_list(moved)]))


def where_and_next(plan: str) -> str:
    """Where results and the verdict are, and which commands may come next."""
    folder = Path(os.path.relpath(results_dir(plan)))
    claims = ""
    if (results_dir(plan) / "tables" / "claims.md").is_file():
        claims = " (claims.md: what these runs say of each claim)"
    lines = [
        ("results", f"{folder / 'tables'}{claims}, figures, records"),
        ("verdict", f"{folder / 'verdict.txt'} (each comparison; what is not checked)"),
    ]
    commands = {
        "make lab": "the notebooks (07 is for a method of your own)",
        "make book": "all of this as a site",
    }
    if plan != "full" and "full" in plan_names():
        minutes = f"at most {column_minutes()} min"
        commands[CHECKS_README] = f"README's table, one sample ({minutes})"
    names = ["next", *[""] * (len(commands) - 1)]
    lines += [
        (name, f"{command}: {what}")
        for name, (command, what) in zip(names, commands.items(), strict=True)
    ]
    return "\n".join(f"{name:7}  {text}" for name, text in lines)
