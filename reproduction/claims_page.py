"""The page of claims: a line for each claim with its verdict, then how each was tested.

This is the one place where sentences are made of what `judge_claims` returns.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from helpers.explore.names import display_name
from helpers.paths import reference_dir, replace_file
from reproduction.claim_draws import QUANTITIES
from reproduction.claims import (
    ALONE,
    DECIDING,
    FAILS,
    FEWEST_LAYERS,
    GONE,
    HALF,
    HOLDS,
    LEVEL,
    MOST,
    NEGLIGIBLE,
    OPEN,
    OURS,
    UNTESTED,
    holm,
    judge_claims,
)
from reproduction.labels import column_key
from reproduction.markdown import text_table
from reproduction.pipelines import BASE
from reproduction.records import Records, read_records
from reproduction.runs import (
    FEWEST,
    by_model,
    common_parameters,
    full_name,
    model_sentence,
)

POINTS = {HOLDS: "yes", FAILS: "no"}
COUNTED = {  # a verdict on one claim, and on several
    HOLDS: ("holds", "hold"),
    FAILS: ("does not hold", "do not hold"),
    OPEN: ("is undecided", "are undecided"),
    UNTESTED: ("is not tested", "are not tested"),
}
PAPER = (  # as the plan `paper` lays it out
    "LLaMA-7B; LLaMA-2-7B, 13B, 70B",
    "128 x 2048 tokens",
    "all windows of 2048 tokens; 7 tasks, all questions",
)
NOWHERE = (
    "No page tests the abstract's “wide range of LLMs”: the models here have 135M and 270M "
    "parameters, the paper's 7B to 70B."
)
RULES = (
    "Methods are compared in pairs of one calibration draw (seed), one setting (that of most runs) "
    "and one processor. Several records of one draw count once, with their mean.",
    f"A column (a sparsity or a pattern) decides by its own draws, {FEWEST} at the least. One with "
    "fewer is shown without ± and decides nothing. The number of draws stands in brackets.",
    "± is half of Student's 95 % interval over draws. Draws that answer the same questions share "
    "their luck: two standard errors over questions are added in quadrature, and are all of it if "
    "there are too few draws.",
    "A claim of several columns holds if all of them lie on its side of the limit by more than ± "
    "(so its p is the largest), and does not hold if one lies on the other side by more than ± "
    "(p is the smallest, times their number).",
    "Interval claims of a page are one family: p is corrected for their number by Holm's method, "
    f"and must be at most {LEVEL:g}. ± is not corrected.",
    f"“No more than” leaves a margin of {100 * NEGLIGIBLE:.0f} % of a perplexity: "
    "rounding on another processor does as much.",
    f"Claims about layers must be true of {100 * MOST:.0f} % of the problems (a layer at a "
    f"sparsity, on one mask by Wanda's score, budget per matrix) on {FEWEST_LAYERS} layers or "
    f"more; at {100 * HALF:.0f} % or fewer they do not hold. “Worst” is the problem "
    "that speaks most against the claim. These are counts, without an interval.",
    "Seconds decide only in runs that were timed alone, without others beside them.",
    f"“{OPEN.capitalize()}”: the interval straddles the limit, or a count lies between. "
    f"“{UNTESTED.capitalize()}”: no or too few runs, said which; “points to” says where they lie.",
    "All draws are of one pool of text and share some of it, and all perplexities of a page are on "
    "the same windows: ± is a little too small, and holds no choice of windows.",
)


Other = tuple[
    str, Any, pd.DataFrame
]  # a model, the verdict on its claim and its evidence


def claims_markdown(records: Records, tables: Path, page: Path | None = None) -> str:
    """The page of claims on the records of one model.

    It begins with how many claims hold. Then comes a line for each with its verdict and the number
    that decides it; rules and all other numbers are folded. Of runs that decide nothing the line
    says where they point, beside the verdict of the plans `full` and `beyond`.
    Args: tables, the folder of the tables; page, where links start, by default there.
    """
    records = list(records)
    page = page or tables
    verdicts, rows = judge_claims(records)
    shown = verdicts[verdicts["n"] > 0]
    decides = shown["verdict"].ne(UNTESTED).any()
    pages = {
        plan: f"[{plan}]({os.path.relpath(reference_dir(plan) / 'tables/claims.md', page)})"
        for plan in DECIDING
    }
    deciding = " and ".join(pages.values())
    if shown.empty:
        return f"No claim has runs here: see {deciding}.\n"
    others = _elsewhere(["second"] if decides else DECIDING)
    models = {model for model, *_ in others.values()} - {_model(records)}
    theirs = f" on {' and '.join(sorted(models))}" if models else ""
    heads = ["#", "claim", "verdict", "the number that decides", "table"]
    opening = count_sentence(verdicts)
    if not decides:
        heads[2:4] = [
            "these runs point to",
            f"{deciding}{theirs}: verdict, with its own number",
        ]
        opening = (
            f"These runs are too few to decide any of the {len(shown)} claims that they say "
            "something of."
        )
    lines = {True: [], False: []}  # of the paper's claims, and of our own
    details = []
    for row in shown.itertuples():
        own = rows[rows["number"] == row.number]
        other = others.get(row.number)
        middle = [f"**{row.verdict}**", _decided_by(row, own)]
        if not decides:
            middle = [
                _points_to(row, own).removeprefix("points to "),
                _verdict_there(row, own, other),
            ]
        table = os.path.relpath(tables / f"{row.table}.md", page)
        link = f"[{row.table}]({table})"
        lines[row.source != OURS].append(
            [str(row.number), row.sentence.rstrip("."), *middle, link]
        )
        details.append(_details(row, own, other if decides and models else None))
    titles = {True: "The paper's claims", False: "Our own, which are not in the paper"}
    missing = ", ".join(map(str, verdicts["number"][verdicts["n"] == 0]))
    notes = []
    if missing:
        # a page does not send its reader to itself
        there = [
            link
            for plan, link in pages.items()
            if reference_dir(plan) / "tables" != Path(tables)
        ]
        notes = [f"Claims {missing} have no runs here: see {' and '.join(there)}."]
    notes += [GONE, NOWHERE, _together(verdicts)] if decides else [GONE]
    parts = [
        f"**{opening}**",
        f"{model_sentence(records)} It is a toy beside the paper's models: a verdict is about it "
        "and these texts.",
        _scale(records, rows),
        *(
            f"**{titles[papers]}**\n\n{text_table(heads, own)}"
            for papers, own in lines.items()
            if own
        ),
        "\n".join(f"- {note}" for note in notes),
        _fold(
            "How a claim is decided: the rules",
            "\n".join(f"- {rule}" for rule in RULES),
        ),
        _fold("How each claim was tested, with all numbers", "\n\n".join(details)),
    ]
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


def count_sentence(verdicts: pd.DataFrame) -> str:
    """How many of the claims that the records say something of hold, and so on."""
    verdicts = verdicts[verdicts["n"] > 0]
    whose = np.where(verdicts["source"] == OURS, "our own", "the paper's")
    texts = []
    for owner, own in verdicts["verdict"].groupby(whose):
        counts = own.value_counts()
        kinds = [
            f"{counts[kind]} {words[int(counts[kind] > 1)]}"
            for kind, words in COUNTED.items()
            if kind in counts
        ]
        listed = " and ".join([", ".join(kinds[:-1]), kinds[-1]]).removeprefix(" and ")
        texts.insert(0, f"of {owner} {len(own)} claims {listed}")
    text = "; ".join(texts)
    return f"{text[:1].upper()}{text[1:]}."


def main_number(row: Any, rows: pd.DataFrame) -> str:
    """The numbers of the column that decides a claim, or of its layer problems."""
    own = rows[(rows["at"] == row.at) & rows["decides"] & (rows["n"] > 0)]
    if not row.at:
        (each,) = own[own["quantity"] == row.quantity].itertuples()
        quantity = QUANTITIES[each.quantity]
        return f"{quantity.words}: median {quantity.show(each.median)}, {_right(each)}"
    numbers = {}  # by their words; a dictionary keeps an order
    for each in own.itertuples():
        words = QUANTITIES[each.quantity].words
        text = f"{_number(each)} {_beside(each)}".strip()
        numbers.setdefault(words, {})[text] = None
    texts = [f"{words} {' and '.join(found)}" for words, found in numbers.items()]
    draws = "1 draw" if row.n == 1 else f"{row.n} draws"
    return f"{', '.join(texts)}, at {row.at} ({draws})"


# ------------------------------------------------------------------ the cells of a line


def _decided_by(row: Any, rows: pd.DataFrame) -> str:
    """The number that decides a claim, with what is lacking or what the correction has changed."""
    if row.verdict == UNTESTED:
        return f"{_points_to(row, rows)}; needs {_needs(rows)}"
    text = main_number(row, rows)
    if row.alone != row.verdict:
        text += (
            f"; {row.alone} alone (p = {row.p:.2g}), not after correction for {row.family} "
            "claims"
        )
    return text


def _points_to(row: Any, rows: pd.DataFrame) -> str:
    """Where runs point that decide nothing, and their number."""
    number = main_number(row, rows)
    return f"points to {POINTS[row.points]}: {number}" if row.points else number


def _needs(rows: pd.DataFrame) -> str:
    """What a claim lacks to be tested."""
    needs = rows[rows["needed"] & rows["decides"]].groupby("lacks", sort=False)["at"]
    return "; ".join(
        f"{lacks} at {', '.join(dict.fromkeys(at))}".removesuffix(" at ")
        for lacks, at in needs
        if lacks
    )


def _verdict_there(row: Any, rows: pd.DataFrame, other: Other | None) -> str:
    """The verdict of the deciding plans with their own number, beside runs that decide nothing."""
    if not other:
        return "–"
    _, there, evidence = other
    text = f"**{there.verdict}**: {main_number(there, evidence)}"
    if there.verdict == UNTESTED:
        text = f"**{UNTESTED}**, {_points_to(there, evidence)}"
    if {row.points, there.points} == {HOLDS, FAILS}:
        both = rows.merge(evidence, on=["quantity", "against", "limit", "at"])
        unlike = (both["lead_x"] * both["lead_y"] < 0).any()
        text += (
            "; these runs point the other way"
            if unlike
            else f"; {there.at} was not run here"
        )
    return text


# ------------------------------------------------------------------ how a claim was tested


def _details(row: Any, rows: pd.DataFrame, other: Other | None) -> str:
    """How a claim was tested, a table of all its numbers, p and the scale of the runs."""
    notes = []
    if row.verdict == UNTESTED:
        notes.append(f"Needs {_needs(rows)}.")
    elif row.family:
        notes.append(
            f"p = {row.p:.2g}, and {row.corrected:.2g} after correction for {row.family} claims."
        )
    notes.append(f"Runs: {'; '.join(map(str, row.scale))}.")
    if other:
        model, there, own = other
        notes.append(f"On {model}: {_points_to(there, own)}.")
    heads = ["", "median", "worst", "how many"]
    if row.at:
        heads = ["", *sorted(set(rows["at"]), key=column_key)]
    table = []
    for _, own in rows.groupby(["quantity", "against", "limit"], sort=False):
        first = next(own.itertuples())
        quantity = QUANTITIES[first.quantity]
        words = f"{quantity.words} {_beside(first)}".strip()
        if not first.decides:
            words += " (decides nothing)"
        elif row.at:
            words += f": {_limit(first)}"
        if row.at:
            cells = {
                each.at: f"{_number(each)} ({each.n})" if each.n else "–"
                for each in own.itertuples()
            }
            numbers = [cells.get(at, "–") for at in heads[1:]]
        else:
            numbers = [quantity.show(first.median), quantity.show(first.worst)]
            numbers.append(_right(first))
        table.append([words, *numbers])
    return (
        f"**{row.number}. {row.sentence}** {row.how} Source: {row.source}.\n\n"
        f"{text_table(heads, table)}\n{' '.join(notes)}"
    )


def _limit(row: Any) -> str:
    """What must be true of a number: "below 0", "at most +25.0 %"."""
    if not row.limit:
        return "above 0" if row.side > 0 else "below 0"
    side = "above" if row.side > 0 else "at most"
    return f"{side} {QUANTITIES[row.quantity].show(row.limit)}"


def _right(row: Any) -> str:
    """On how many layer problems a claim is true: "above 1 on 32 of 32 problems"."""
    text = f"{_limit(row)} on {row.right:.0f} of {row.n} problems"
    if row.unknown:
        text += f", not known on {row.unknown:.0f}"
    return f"{text} (on a shared machine)" if row.lacks == ALONE else text


def _beside(row: Any) -> str:
    """What the number of a row of `evidence` is compared with, if its unit does not say so."""
    if not row.against or row.quantity in ("closed", "times"):
        return ""
    if row.of.startswith(f"{BASE} ("):
        return f"with {row.of.removeprefix(BASE).strip(' ()')}"
    return f"against {display_name(row.against).partition(',')[0]}"


def _number(row: Any) -> str:
    """The number of a row of `evidence` about a model: "−28 ± 3 %"."""
    text = QUANTITIES[row.quantity].show(row.mean, row.half)
    return f"{text} (on a shared machine)" if row.lacks == ALONE else text


# ------------------------------------------------------------------ the page around the lines


def _scale(records: Records, rows: pd.DataFrame) -> str:
    """The scale of these runs and of the paper's, a line each, with minutes and processors."""
    every = dict.fromkeys(each for scale in rows["scale"] for each in scale)
    columns = zip(*every, strict=True)
    texts = ["; ".join(dict.fromkeys(filter(None, own))) for own in columns]
    minutes = sum(run.get("seconds", 0.0) for run in records) / 60
    lines = {
        "This reproduction": (_model(records), *texts[:2]),
        "The paper": PAPER,
    }
    here, paper = (
        f"- {who}: {model}. Calibrated on {text}, evaluated on {windows}."
        for who, (model, text, windows) in lines.items()
    )
    return f"{here} {minutes:.0f} minutes of runs, on {texts[2]}.\n{paper}"


def _fold(title: str, text: str) -> str:
    """Markdown that is hidden until its title is clicked."""
    return f"<details><summary>{title}</summary>\n\n{text}\n\n</details>"


def _together(verdicts: pd.DataFrame) -> str:
    """What changes if p is corrected for the claims of all committed pages together."""
    own = verdicts[verdicts["family"] > 0].set_index("number")
    others = pd.concat(judge_claims(_committed(plan))[0] for plan in DECIDING)
    others = others[others["family"] > 0].set_index("number")
    p = holm(pd.concat([own["p"], others["p"].drop(own.index, errors="ignore")]))
    decided = own.index[own["verdict"].isin([HOLDS, FAILS])]
    lost = [str(number) for number in decided if p[number] > LEVEL]
    change = (
        f"claim {' and '.join(lost)} would be {OPEN}" if lost else "no verdict changes"
    )
    return (
        f"p is corrected for the {len(own)} interval claims of this page; corrected for the "
        f"{len(p)} of the pages {' and '.join(DECIDING)} together, {change}."
    )


def _committed(plan: str) -> list[dict[str, Any]]:
    """The committed records of a plan."""
    return read_records(reference_dir(plan) / "records")


def _elsewhere(plans: Sequence[str]) -> dict[int, Other]:
    """What the committed records of plans say of each claim, by its number."""
    found = {}
    for plan in plans:
        records = _committed(plan)
        verdicts, rows = judge_claims(records)
        for row in verdicts[verdicts["n"] > 0].itertuples():
            found[row.number] = _model(records), row, rows[rows["number"] == row.number]
    return found


def _model(records: Records) -> str:
    """The name of the model, without how it was converted."""
    name = full_name("model", common_parameters(records).get("model"))
    return str(name).partition(" (")[0]


def write_claims(records: Records, folder: str | Path) -> list[Path]:
    """Write claims.md, a section for each model, into the folder of the tables; return its path.

    Raises FileError if the folder cannot be written.
    """
    texts = [claims_markdown(runs, Path(folder)) for runs in by_model(records).values()]
    path = Path(folder) / "claims.md"
    return [replace_file(path, "\n".join(texts))] if texts else []
