"""The verdict in words, every comparison, and the page of claims."""

from __future__ import annotations

import os
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

import pandas as pd

from helpers.paths import replace_file
from helpers.report import frame
from helpers.report.claims import CLAIMS, RULES, claim_verdicts
from helpers.report.frame import Record, by_model
from helpers.report.tables import sections
from helpers.report.verdict import Comparison, Verdict, printed_metrics


def summary(verdict: Verdict) -> str:
    """The verdict in one line: how many runs agree, how closely, and on which kind of machine."""
    if not verdict.compared:
        return "nothing to compare: these runs have no committed record"
    text = f"{verdict.reproduced} of {verdict.compared} runs reproduced"
    if verdict.missing:
        text += f", {verdict.missing} not run here with this code"
    if apart := [abs(item.apart) for item in verdict.comparisons if item.apart is not None]:
        text += f", differences at most {100 * max(apart):.2f} %"
    others = [differences for differences in verdict.machines.values() if differences]
    reasons = "; ".join(dict.fromkeys(chain(*others)))
    if len(others) < len(verdict.machines):
        some = f", but another for {len(others)} of them: {reasons}" if others else ""
        return f"{text} (same kind of machine{some})"
    return f"{text} (another machine: {reasons})" if others else text


def notes(verdict: Verdict) -> list[str]:
    """What the verdict does not cover, a sentence each."""
    runs = "1 run" if verdict.without == 1 else f"{verdict.without} runs"
    note = f"no reference for {runs}: none was committed with these parameters and seeds"
    return [note] if verdict.without else []


def to_lines(comparisons: Iterable[Comparison]) -> list[str]:
    """The comparisons as aligned lines with a heading; the last column marks what is apart."""
    table = pd.DataFrame(comparisons, columns=Comparison._fields)
    apart = [f"{100 * value:+.2f} %" if pd.notna(value) else "" for value in table["apart"]]
    marks = ["" if within else "OUT" for within in table.pop("within")]
    table = table.assign(apart=apart).assign(**{"": marks})
    return table.to_string(index=False, float_format="{:.5g}".format).splitlines()


def numbers_text(records: Iterable[Record]) -> str:
    """The table of perplexities, or where there is none what each run measured, a line a run."""
    records = list(records)
    if shown := sections(records).get("perplexity"):
        return "\n".join(section.markdown for section in shown)
    lines = []
    for record in records:
        numbers = ", ".join(f"{name} {text}" for name, text in printed_metrics(record).items())
        lines.append(f"{record['notebook']} {record['name']}: {numbers or 'no numbers'}")
    return "\n".join(lines)


def claims_markdown(records: Iterable[Record]) -> str:
    """The verdicts on the records of one model: a table of claims, then the words of each test."""
    records = list(records)
    lines = [frame.about_model(records), ""] * bool(records)
    lines += ["| | claim | verdict | numbers |", "| --: | :-- | :-- | :-- |"]
    for number, (sentence, verdict, numbers) in enumerate(claim_verdicts(records), start=1):
        lines.append(f"| {number} | {sentence} | **{verdict}** | {numbers} |")
    lines += ["", f"How each was tested. {RULES}", ""]
    for number, claim in enumerate(CLAIMS, start=1):
        lines.append(f"{number}. {frame.caption(claim, paragraph=1)}")
    return "\n".join(lines) + "\n"


def write_claims(records: Iterable[Record], folder: str | os.PathLike[str]) -> list[Path]:
    """Write claims.md into a folder, a section a model; its path. Raises FileError."""
    texts = {model: claims_markdown(runs) for model, runs in by_model(records).items()}
    if len(texts) > 1:
        texts = {model: f"## {model}\n\n{text}" for model, text in texts.items()}
    path = Path(folder) / "claims.md"
    return [replace_file(path, "\n".join(texts.values()))] if texts else []
