"""In words: the main number of a run, the verdict in one line, and every comparison."""

from collections.abc import Sequence
from itertools import chain

import pandas as pd

from helpers.report.labels import format_number
from helpers.report.record_comparison import COMPUTING, Comparison, Verdict
from helpers.report.records import Record

# the main metric of each notebook, and what it is called
MAIN = {
    "perplexity": "perplexity",
    "perplexity_admm-grad": "perplexity",
    "mean_acc": "mean accuracy",
    "error_admm": "relative error of the layer",
    "paper_unstructured": "error, gradual over one-shot mask:",
    "condition_q_proj": "condition number of q_proj's Gram matrix",
    "records": "records",
}


def main_number(record: Record) -> str:
    """The main number of a record, last behind its name: "perplexity 65.24"; "" if it has none."""
    for metric, words in MAIN.items():
        if metric in record["metrics"]:
            return f"{words} {format_number(record['metrics'][metric]['value'])}"
    return ""


def verdict_line(verdict: Verdict) -> str:
    """How many runs agree, how closely, and on which kind of machine."""
    if not verdict.compared:
        return "nothing to compare: these runs have no committed record"
    text = f"{verdict.reproduced} of {verdict.compared} runs reproduced"
    if verdict.missing:
        text += f", {verdict.missing} not run here with this code"
    if verdict.without:
        text += f", {verdict.without} more without a committed record"
    known = [item.apart for item in verdict.comparisons if item.apart is not None]
    if known:
        text += f", differences at most {100 * max(map(abs, known)):.2f} %"
    others = list(filter(None, verdict.machines.values()))
    differing = dict.fromkeys(chain(*others))
    reasons = "; ".join(differing)
    if not verdict.machines:
        return text
    if not others:
        return f"{text} (same kind of machine)"
    if len(others) < len(verdict.machines):
        return f"{text} (same kind of machine, but another for {len(others)} of them: {reasons})"
    if all(reason.startswith(COMPUTING) for reason in differing):
        return (
            f"{text} (the same kind of processor, but {reasons}: results may differ as on another "
            "machine; for equal digits install the latter)"
        )
    return f"{text} (another machine: {reasons})"


def comparison_lines(comparisons: Sequence[Comparison]) -> list[str]:
    """The comparisons as aligned lines with a heading; the last column marks what is apart."""
    if not comparisons:
        return []
    table = pd.DataFrame(comparisons).drop(columns=["within", "close"])
    table["apart"] = [
        "" if item.apart is None else f"{100 * item.apart:+.2f} %"
        for item in comparisons
    ]
    near = ", close to the bound: another kind of processor may do that"
    table[""] = [
        "" if item.within else f"OUT{near * item.close}" for item in comparisons
    ]
    return table.to_string(index=False, float_format="{:.5g}".format).splitlines()
