"""The page of claims: verdicts beside their numbers and scale, then how each was tested.

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
    HALF,
    HOLDS,
    LEVEL,
    MOST,
    NEGLIGIBLE,
    OPEN,
    OURS,
    UNTESTED,
    VERDICTS,
    holm,
    judge_claims,
)
from reproduction.pipelines import BASE
from reproduction.records import Record, Records, read_records
from reproduction.runs import (
    FEWEST,
    by_model,
    common_parameters,
    full_name,
    model_sentence,
)

POINTS = {HOLDS: "points to yes: ", FAILS: "points to no: ", "": ""}
PAPER = {  # as the plan `paper` lays it out
    "": "the paper",
    "models": "LLaMA-7B; LLaMA-2-7B, 13B and 70B",
    "runs": "128 x 2048 tokens of calibration text, perplexity on all windows of 2048 tokens; "
    "7 tasks, all questions",
    "minutes": "–",
}
HOW = "How each was tested, with all numbers"
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
    f"“No more than” and “equals” leave a margin of {100 * NEGLIGIBLE:.0f} % of a perplexity: "
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


def claims_markdown(
    records: Records, tables: Path, page: Path | None = None, folded: bool = False
) -> str:
    """The page of claims on the records of one model: verdicts, scale, and how each was tested.

    A column says what the committed runs of another model say (the plan `second`) or, beside runs
    that decide nothing, those of `full` and `beyond`.
    Args: tables, the folder of the tables; page, where links start, by default there; folded, hide
    how each was tested until it is clicked, for a notebook.
    """
    records = list(records)
    page = page or tables
    verdicts, rows = judge_claims(records)
    decides = verdicts["verdict"].ne(UNTESTED).any()
    others, others_say = _others(records, ["second"] if decides else DECIDING)
    table, details = [], []
    for row in verdicts[verdicts["n"] > 0].itertuples():
        own = rows[rows["number"] == row.number]
        link = os.path.relpath(tables / f"{row.table}.md", page)
        cells = {
            "#": str(row.number),
            "claim": row.sentence,
            "source": row.source,
            "verdict": _verdict(row, own),
            "number": main_number(row, own),
            others: others_say.get(row.number, "–"),
            "evidence": f"[{row.table}]({link})",
        }
        table.append(cells if others else {k: v for k, v in cells.items() if k})
        details.append(f"{row.number}. {row.how} {_details(row, own)}")
    scale = {
        "": "this reproduction",
        "models": f"{_model(records)}, a toy beside the paper's",
        "runs": "; ".join(dict.fromkeys(filter(None, rows["scale"]))),
        "minutes": f"{sum(run.get('seconds', 0.0) for run in records) / 60:.0f}",
    }
    text = f"{model_sentence(records)} {count_sentence(verdicts)}"
    if decides:
        text += f" {_together(verdicts)}"
    how = "\n".join([*(f"- {rule}" for rule in RULES), "", *details])
    fold = f"<details><summary>{HOW}</summary>\n\n{how}\n\n</details>"
    untested = ", ".join(map(str, verdicts["number"][verdicts["n"] == 0]))
    links = (
        f"[{plan}]({os.path.relpath(reference_dir(plan) / 'tables/claims.md', page)})"
        for plan in DECIDING
    )
    parts = [
        text,
        _markdown([scale, PAPER]),
        _markdown(table) if table else "No claim has runs here.",
        fold if folded else f"{HOW}:\n\n{how}",
        f"No runs here for claims {untested}. " if untested else "",
    ]
    return "\n\n".join(parts) + f"The committed pages: {', '.join(links)}.\n"


def count_sentence(verdicts: pd.DataFrame) -> str:
    """How many of the claims that the records say something of hold, and so on."""
    verdicts = verdicts[verdicts["n"] > 0]
    whose = np.where(verdicts["source"] == OURS, "Our own", "The paper's")
    texts = []
    for owner, own in verdicts["verdict"].groupby(whose, sort=False):
        counts = own.value_counts().reindex(VERDICTS).dropna()
        kinds = (f"{kind} {count:.0f}" for kind, count in counts.items())
        texts.append(f"{owner} {len(own)} claims: {', '.join(kinds)}.")
    return " ".join(texts)


def _verdict(row: Any, rows: pd.DataFrame) -> str:
    """The verdict on a claim with what it lacks, or what it would be without correction."""
    text = f"**{row.verdict}**"
    if row.verdict == UNTESTED:
        needs = rows[rows["needed"] & rows["decides"]].groupby("lacks", sort=False)[
            "at"
        ]
        texts = (
            f"{lacks} at {', '.join(dict.fromkeys(at))}".removesuffix(" at ")
            for lacks, at in needs
            if lacks
        )
        text += f": needs {'; '.join(texts)}"
    if row.alone != row.verdict:
        text += (
            f"; {row.alone} alone (p = {row.p:.2g}), not after correction for {row.family} "
            "claims"
        )
    return text


def main_number(row: Any, rows: pd.DataFrame) -> str:
    """The numbers of the column that decides a claim, with where they point if none does."""
    own = rows[(rows["at"] == row.at) & rows["decides"] & (rows["n"] > 0)]
    if not row.at:
        own = own[own["quantity"] == row.quantity]
    texts = [
        f"{QUANTITIES[each.quantity].words} {_number(each)} {_beside(each)}".strip()
        for each in own.itertuples()
    ]
    text = ", ".join(dict.fromkeys(texts))
    if row.at:
        text = f"{row.at}: {text} ({row.n} {'draw' if row.n == 1 else 'draws'})"
    return POINTS[row.points] + text if row.verdict == UNTESTED else text


def _details(row: Any, rows: pd.DataFrame) -> str:
    """The numbers of all columns of a claim with their draws, p, and the scale of the runs."""
    texts = []
    for _, own in rows.groupby(["quantity", "against"], sort=False):
        columns = []
        for each in own.itertuples():
            number = f"{each.at} {_number(each) if each.n else '–'}".strip()
            columns.append(f"{number} ({each.n})" if each.at else number)
        words = f"{QUANTITIES[each.quantity].words} {_beside(each)}".strip()
        texts.append(f"{words}: {', '.join(dict.fromkeys(columns))}")
    if row.family and row.verdict != UNTESTED:
        texts.append(
            f"p = {row.p:.2g}, {row.corrected:.2g} corrected for {row.family} claims"
        )
    return f"*{'; '.join(texts)}.* Scale: {row.scale}."


def _beside(row: Any) -> str:
    """What the number of a row of `evidence` is compared with, if its unit does not say so."""
    if not row.against or row.quantity in ("closed", "times"):
        return ""
    if row.of.startswith(f"{BASE} ("):
        return f"with {row.of.removeprefix(BASE).strip(' ()')}"
    return f"against {display_name(row.against).partition(',')[0]}"


def _number(row: Any) -> str:
    """The number of a row of `evidence`: "−28 ± 3 %", of layers with the count."""
    quantity = QUANTITIES[row.quantity]
    text = quantity.show(row.mean, row.half)
    if not quantity.notebook:
        side = "above" if row.side > 0 else "at most"
        text = (
            f"{quantity.show(row.median)} (median; worst {quantity.show(row.worst)}), "
            f"{side} {quantity.show(row.limit)} on {row.right:.0f} of {row.n} problems"
        )
        if row.unknown:
            text += f", not known on {row.unknown:.0f}"
    return f"{text} (on a shared machine)" if row.lacks == ALONE else text


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


def _others(records: list[Record], plans: Sequence[str]) -> tuple[str, dict[int, str]]:
    """A column's title, and what the committed records of other plans say of each claim.

    ("", {}) if the only other plan has no records, or is of the same model.
    """
    texts = {}
    title = f"plans {' and '.join(plans)}"
    for plan in plans:
        others = _committed(plan)
        if len(plans) == 1:
            if not others or _model(others) == _model(records):
                return "", {}
            title = f"on {_model(others)}"
        verdicts, rows = judge_claims(others)
        for row in verdicts[verdicts["n"] > 0].itertuples():
            number = main_number(row, rows[rows["number"] == row.number])
            decided = "" if row.verdict == UNTESTED else f"**{row.verdict}**: "
            texts[row.number] = decided + number
    return title, texts


def _model(records: Records) -> str:
    """The name of the model, without how it was converted."""
    name = full_name("model", common_parameters(records).get("model"))
    return str(name).partition(" (")[0]


def _markdown(rows: list[dict[str, str]]) -> str:
    """A Markdown table of texts; the keys are its heads."""
    lines = [rows[0], [":--"] * len(rows[0]), *(row.values() for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write_claims(records: Records, folder: str | Path) -> list[Path]:
    """Write claims.md, a section for each model, into the folder of the tables; return its path.

    Raises FileError if the folder cannot be written.
    """
    texts = [claims_markdown(runs, Path(folder)) for runs in by_model(records).values()]
    path = Path(folder) / "claims.md"
    return [replace_file(path, "\n".join(texts))] if texts else []
