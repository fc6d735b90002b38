"""The verdict in words, every comparison, and the page of claims."""

from __future__ import annotations

import os
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

import pandas as pd

from helpers.paths import reference_dir, replace_file
from helpers.report import frame
from helpers.report.claims import CLAIMS, RULES, claim_verdicts
from helpers.report.frame import Record, by_model
from helpers.report.outcome import FAILS, HOLDS, UNTESTED
from helpers.report.records import read_records
from helpers.report.tables import sections
from helpers.report.verdict import Comparison, Verdict

NOTHING = "| – | nothing | – | – | – |\n"  # points the other way


def summary(verdict: Verdict) -> str:
    """The verdict in one line: how many runs agree, how closely, and on which kind of machine."""
    if not verdict.compared:
        return "nothing to compare: these runs have no committed record"
    text = f"{verdict.reproduced} of {verdict.compared} runs reproduced"
    if verdict.missing:
        text += f", {verdict.missing} not run here with this code"
    if verdict.without:
        text += f", {verdict.without} more without a committed record"
    if apart := [
        abs(item.apart) for item in verdict.comparisons if item.apart is not None
    ]:
        text += f", differences at most {100 * max(apart):.2f} %"
    others = [differences for differences in verdict.machines.values() if differences]
    reasons = "; ".join(dict.fromkeys(chain(*others)))
    if len(others) < len(verdict.machines):
        some = f", but another for {len(others)} of them: {reasons}" if others else ""
        return f"{text} (same kind of machine{some})"
    return f"{text} (another machine: {reasons})" if others else text


def to_lines(comparisons: Iterable[Comparison]) -> list[str]:
    """The comparisons as aligned lines with a heading; the last column marks what is apart."""
    table = pd.DataFrame(comparisons, columns=Comparison._fields)
    apart = [
        f"{100 * value:+.2f} %" if pd.notna(value) else "" for value in table["apart"]
    ]
    near = "OUT, close to the bound: another kind of processor may do that"
    state = zip(table.pop("within"), table.pop("close"), strict=True)
    marks = ["" if within else near if close else "OUT" for within, close in state]
    table = table.assign(apart=apart).assign(**{"": marks})
    return table.to_string(index=False, float_format="{:.5g}".format).splitlines()


def numbers_text(records: Iterable[Record]) -> str:
    """The tables of perplexities, "" where there is none."""
    shown = sections(records).get("perplexity", [])
    return "\n".join(section.markdown for section in shown)


def claims_markdown(
    records: Iterable[Record], tables: Path, page: Path | None = None
) -> str:
    """The verdicts on the records of one model, each with its main number and a link to its table;
    then how each was tested, with all numbers, and which claims these records do not test. A column
    says where the runs of another model point (`second_model`).

    Of records that decide nothing, only what points another way than the committed ones of `full`
    and `beyond`. Args: tables, the folder of the tables; page, where links start, by default there.
    """
    records, page, rows, tested, others = list(records), page or tables, "", "", {}
    judged = beside = claim_verdicts(records)
    text = f"{frame.about_model(records)} ± is half of a 95 % interval."
    if not any(one.verdict in (HOLDS, FAILS) for one in judged):
        committed = (reference_dir(plan) / "records" for plan in ("full", "beyond"))
        beside = claim_verdicts(chain(*map(read_records, committed)))
        link = os.path.relpath(reference_dir("full") / "tables" / "claims.md", page)
        text += f" These runs are too few to decide a claim: verdicts are [those of full]({link})."
        text += " Shown is where the numbers of these runs point the other way."
    second, pointers = second_model(records) if beside is judged else ("", [])
    if second:
        text += f" The runs on {second} are too few to decide a claim: shown is where they point."
    for number, (claim, one, other) in enumerate(
        zip(CLAIMS, judged, beside, strict=True), start=1
    ):
        if beside is judged and one.verdict == UNTESTED:
            others.setdefault(one.numbers.partition(";")[0], []).append(number)
        elif beside is judged or {one.points, other.points} == {HOLDS, FAILS}:
            how, _, name = frame.caption(claim, paragraph=1).rpartition(" Table: ")
            table = tables / f"{name}md"  # its name ends in a full stop
            link = f"[{table.stem}]({os.path.relpath(table, page)})"
            cells = [
                one.sentence,
                f"**{other.verdict}**",
                one.numbers.partition(";")[0],
            ]
            cells += pointers[number - 1 : number]
            rows += f"| {number} | {' | '.join(cells)} | {link} |\n"
            tested += f"{number}. {how} *{one.numbers}.*\n"
    titles = [
        "#",
        "claim",
        "verdict",
        "number",
        *([f"on {second}"] if second else []),
        "evidence",
    ]
    head = f"| {' | '.join(titles)} |\n| --: {'| :-- ' * (len(titles) - 1)}|\n"
    left = "; ".join(f"{', '.join(map(str, of))} ({why})" for why, of in others.items())
    tested = f"{tested}\nNot tested by these records: {left}.\n" if others else tested
    return (
        f"{text}\n\n{head}{rows or NOTHING}\nHow each was tested. {RULES}\n\n{tested}"
    )


def second_model(records: list[Record]) -> tuple[str, list[str]]:
    """The model of the plan `second`, and of each claim whether its committed runs point to it.

    With the number; a claim that they do not test has "–". Nothing if there are no such records, or
    these are of that model.
    """
    others = read_records(reference_dir("second") / "records")
    second, here = (
        frame.common_parameters(runs).get("model") for runs in (others, records)
    )
    if not others or second == here:
        return "", []
    words, judged = {HOLDS: "yes: ", FAILS: "**no**: "}, claim_verdicts(others)
    said = [(words.get(one.points), one.numbers.partition(";")[0]) for one in judged]
    name, _, _ = frame.EMBEDDED["model"][second].partition(
        " ("
    )  # without how it was converted
    return name, [word + number if word else "–" for word, number in said]


def write_claims(
    records: Iterable[Record], folder: str | os.PathLike[str]
) -> list[Path]:
    """Write claims.md into the folder of the tables, a section a model; its path.

    Raises FileError.
    """
    texts = [claims_markdown(runs, Path(folder)) for runs in by_model(records).values()]
    path = Path(folder) / "claims.md"
    return [replace_file(path, "\n".join(texts))] if texts else []
