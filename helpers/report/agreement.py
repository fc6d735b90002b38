"""The verdict in words: one line, what it leaves out, every comparison, and two plans' claims."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain

from helpers.report.claims import Judged
from helpers.report.frame import Record, by_model
from helpers.report.outcome import FAILS, HOLDS
from helpers.report.tables import format_number, perplexity_table
from helpers.report.verdict import NOT_JUDGED, Comparison, Verdict


def summary(verdict: Verdict) -> str:
    """The verdict in one line: how many runs agree, how closely, and on which kind of machine."""
    if not verdict.compared:
        return "nothing to compare: these runs have no committed record"
    text = f"{verdict.reproduced} of {verdict.compared} runs reproduced"
    if verdict.missing:
        text += f", {verdict.missing} not run here with this code"
    found = [abs(item.apart) for item in verdict.comparisons if item.apart is not None]
    if found:
        text += f", differences at most {100 * max(found):.2f} %"
    apart = [differences for differences in verdict.machines.values() if differences]
    reasons = "; ".join(dict.fromkeys(chain(*apart)))
    if len(apart) < len(verdict.machines):
        share = f", but another for {len(apart)} of them: {reasons}" if apart else ""
        return f"{text} (same kind of machine{share})"
    return f"{text} (another machine: {reasons})" if apart else text


def notes(verdict: Verdict) -> list[str]:
    """What the verdict does not cover, a sentence each."""
    lines = []
    if verdict.without:
        runs = "1 run" if verdict.without == 1 else f"{verdict.without} runs"
        lines.append(f"no reference for {runs}: none was committed with these parameters and seeds")
    if verdict.lacking:
        parts = ", ".join(f"{what} {count}" for what, count in sorted(verdict.lacking.items()))
        lines.append(f"not compared, since so many committed records lack them: {parts}")
    return lines


def to_lines(comparisons: Iterable[Comparison]) -> list[str]:
    """The comparisons as aligned lines with a heading; the last column marks what is apart."""

    def text(value: float | str) -> str:
        return value if isinstance(value, str) else f"{value:.5g}"

    rows = [("run", "what", "here", "reference", "apart", "allowed", "")]
    for item in comparisons:
        apart = "" if item.apart is None else f"{100 * item.apart:+.2f} %"
        values = text(item.here), text(item.reference), apart, item.allowed
        rows.append((item.run, item.what, *values, "" if item.within else "OUT"))
    run, what, *numbers = (max(map(len, column)) for column in zip(*rows, strict=True))
    line = f"{{:{run}}}  {{:{what}}}" + "".join(f"  {{:>{width}}}" for width in numbers)
    return [line.format(*row).rstrip() for row in rows]


def perplexity_text(records: Iterable[Record]) -> str:
    """The perplexity table of each model as aligned text; "" where none was measured."""
    parts = []
    for model, found in by_model(records).items():
        if table := perplexity_table(found):
            parts.append(f"perplexity, model {model}\n{table[0].map(format_number).to_string()}\n")
    return "\n".join(parts)


def numbers_text(records: Iterable[Record]) -> str:
    """What each run measured, a line a run, without times and memory."""
    lines = []
    for record in records:
        found = {k: m["value"] for k, m in record["metrics"].items() if m["unit"] not in NOT_JUDGED}
        shown = ", ".join(f"{key} {format_number(value)}" for key, value in found.items())
        lines.append(f"{record['notebook']} {record['name']}: {shown or 'no numbers'}")
    return "\n".join(lines)


def claims_beside(committed: Sequence[Judged], here: Sequence[Judged], plan: str) -> str:
    """The committed verdicts on the claims and those of a plan made here, as Markdown.

    Where a plan is too small to decide, what its numbers lean to is compared. A claim that was
    tested under another condition is not compared.
    """
    lines = [f"| claim | full, committed | {plan}, here | |", "| :-- | :-- | :-- | :-- |"]
    for theirs, ours in zip(committed, here, strict=True):
        agreement = "cannot say"
        if {theirs.verdict, ours.verdict} <= {HOLDS, FAILS}:
            agreement = "agrees" if ours.verdict == theirs.verdict else "**disagrees**"
        elif theirs.verdict in (HOLDS, FAILS) and ours.leans in (HOLDS, FAILS):
            way = "same" if ours.leans == theirs.verdict else "other"
            agreement = f"points the {way} way"
        if agreement != "cannot say" and ours.sentence != theirs.sentence:
            agreement = "tested under another condition"
        verdicts = f"**{theirs.verdict}** | {ours.verdict}"
        lines.append(f"| {theirs.sentence} | {verdicts} | {agreement} |")
    return "\n".join(lines) + "\n"
