"""The paper's claims, each with a test on the records of a plan and a verdict.

A claim is a sentence, the words of its test with its tolerance, and a function of the records
that gives a verdict with the numbers behind it. A plan whose records do not allow the test gets
"not tested here"; so does, by name, what needs models that were not run.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

from helpers.paths import replace_file
from helpers.tables import (
    PRUNE_NOTEBOOK,
    TASK_NAMES,
    ZERO_SHOT_NOTEBOOK,
    column_of,
    format_number,
    perplexity_spread,
)
from helpers.tasks import paired_difference

Record = Mapping[str, Any]
Row = Mapping[str, Any]

HOLDS, FAILS, OPEN, UNTESTED = (
    "holds",
    "does not hold",
    "not decided here",
    "not tested here",
)
COLUMNS = ("50 %", "60 %", "70 %", "80 %", "2:4", "4:8")
MOST = 0.9  # "on nearly all layers": the share of problems on which a claim must be true
FEWEST = 8  # problems; fewer say nothing about nearly all layers
TOLERATED = 0.25  # an overhead this much larger still counts as the same
ENOUGH = 0.01  # an objective this close to its optimum counts as having arrived


@dataclass(frozen=True)
class Outcome:
    """A verdict (HOLDS, FAILS, OPEN or UNTESTED) and the numbers it rests on."""

    verdict: str
    numbers: str


@dataclass(frozen=True)
class Claim:
    """A sentence, the words of its test, and the test."""

    sentence: str
    test: str
    check: Callable[[Findings], Outcome]


class Findings:
    """What the records of one model say, looked up the way the claims ask for it."""

    def __init__(self, records: Iterable[Record]) -> None:
        self.records = list(records)
        self.pruned = [r for r in self.records if r["notebook"] == PRUNE_NOTEBOOK]

    def perplexities(self, method: str, column: str, **options: Any) -> dict[int, float]:
        """Perplexity by calibration seed of a method with just these options; {} if not run."""
        return {
            record["parameters"]["calibration_seed"]: record["metrics"]["perplexity"]["value"]
            for record in self.pruned
            if record["parameters"]["method"] == method
            and column_of(record) == column
            and (record["parameters"].get("options") or {}) == options
        }

    def spread(self) -> float:
        """The largest relative half range over seeds of any cell; 0 where no seeds were run."""
        if not self.pruned:
            return 0.0
        halves = perplexity_spread(self.pruned)
        means = {
            (label, column): mean(self.perplexities(label, column).values())
            for label in halves.index
            for column in halves.columns
            if self.perplexities(label, column)
        }
        shares = [
            halves[column][label] / value
            for (label, column), value in means.items()
            if halves[column][label] == halves[column][label]
        ]
        return max(shares, default=0.0)

    def problems(self) -> list[dict[str, Any]]:
        """One entry for each layer and sparsity of the update study: its rows and curves."""
        found = []
        for record in self.records:
            series = record.get("series") or {}
            for sparsity in sorted({row["sparsity"] for row in series.get("update", ())}):
                parts = {
                    part: [row for row in series[part] if row["sparsity"] == sparsity]
                    for part in ("update", "curves")
                }
                found.append(parts)
        return found

    def seconds(self, method: str, part: str) -> float | None:
        """Mean seconds of a part of pruning over a method's plain unstructured runs."""
        values = [
            record["metrics"][f"{part}_seconds"]["value"]
            for record in self.pruned
            if record["parameters"]["method"] == method
            and not record["parameters"].get("options")
            and record["parameters"]["pattern"] == "unstructured"
            and f"{part}_seconds" in record["metrics"]
        ]
        return mean(values) if values else None

    def answers(self) -> dict[str, dict[str, Any]]:
        """Zero-shot answers by method, of the runs without options."""
        return {
            record["parameters"]["method"]: record["series"]["zero_shot"]
            for record in self.records
            if record["notebook"] == ZERO_SHOT_NOTEBOOK and not record["parameters"].get("options")
        }


# ------------------------------------------------------------------ the update on a fixed mask


def admm_row(problem: Mapping[str, Sequence[Row]], iterations: int, **changes: Any) -> Row | None:
    """The row of ADMM with the defaults, or with `changes`, after so many iterations."""
    wanted = {"rho": 1.0, "precondition": True, "damping": 0.1} | changes
    for row in problem["update"]:
        fits = all(row[key] == value for key, value in wanted.items())
        if row["solver"] == "admm" and row["iterations"] == iterations and fits:
            return row
    return None


def cost_to_reach(curves: Iterable[Row], solvers: Sequence[str], excess: float, unit: str) -> float:
    """The least iterations or seconds in which a curve of `solvers` gets to an excess, or inf."""
    best = float("inf")
    for curve in curves:
        if curve["solver"] in solvers:
            points = zip(curve[unit], curve["excess"], strict=True)
            best = min([best, *(cost for cost, reached in points if reached <= excess)])
    return best


def _mostly(true: int, problems: int, numbers: str) -> Outcome:
    """The verdict on a claim about nearly all layers that is true on some of the problems."""
    if problems < FEWEST:
        return Outcome(OPEN, f"{numbers}; {FEWEST} problems or more would decide")
    return Outcome(HOLDS if true >= MOST * problems else FAILS, numbers)


def _race(findings: Findings, solvers: Sequence[str], unit: str) -> Outcome:
    """How much more the best of `solvers` needs to get where ADMM is after 20 iterations."""
    ratios = []
    for problem in findings.problems():
        target = admm_row(problem, 20)
        if target is not None:
            spent = cost_to_reach(problem["curves"], solvers, target["excess"], unit)
            ratios.append(spent / target[unit])
    if not ratios:
        return _untested("an update study (notebook 02)")
    slower = sum(ratio > 1 for ratio in ratios)
    never = sum(ratio == float("inf") for ratio in ratios)
    middle = median(ratios)
    times = "never" if middle == float("inf") else f"{middle:.3g} times as many {unit}"
    numbers = (
        f"the rival needs more on {slower} of {len(ratios)} problems (on {never} it never gets "
        f"there); median: {times}"
    )
    return _mostly(slower, len(ratios), numbers)


def _enough_iterations(findings: Findings) -> Outcome:
    rows = [row for problem in findings.problems() if (row := admm_row(problem, 20))]
    if not rows:
        return _untested("an update study (notebook 02)")
    excess = [row["excess"] for row in rows]
    within = sum(value <= ENOUGH for value in excess)
    numbers = (
        f"excess after 20 iterations: median {100 * median(excess):.3g} %, "
        f"worst {100 * max(excess):.3g} %; within 1 % on {within} of {len(rows)} problems"
    )
    return _mostly(within, len(rows), numbers)


def _more_iterations(findings: Findings) -> Outcome:
    return _against_default(findings, {"iterations": 50}, lambda change, noise: change > -noise)


def _preconditioning_layer(findings: Findings) -> Outcome:
    pairs = []
    for problem in findings.problems():
        scaled = admm_row(problem, 20)
        unscaled = [
            row
            for row in problem["update"]
            if row["solver"] == "admm" and row["precondition"] is False and row["iterations"] == 20
        ]
        if scaled and unscaled:
            pairs.append((scaled["excess"], min(row["excess"] for row in unscaled)))
    if not pairs:
        return _untested("an update study (notebook 02)")
    better = sum(scaled < unscaled for scaled, unscaled in pairs)
    with_it, without = (100 * median(values) for values in zip(*pairs, strict=True))
    numbers = (
        f"better on {better} of {len(pairs)} problems; median excess {with_it:.3g} % with, "
        f"{without:.3g} % without (the best ρ of those tried)"
    )
    return _mostly(better, len(pairs), numbers)


def _preconditioning_model(findings: Findings) -> Outcome:
    return _against_default(findings, {"precondition": False}, lambda change, noise: change > noise)


def _one_rho(findings: Findings) -> Outcome:
    shares = []
    for problem in findings.problems():
        rows = {rho: admm_row(problem, 20, rho=rho) for rho in (0.1, 1.0, 10.0)}
        if all(rows.values()):
            shares.append(min(rows, key=lambda rho: rows[rho]["excess"]) == 1.0)
    if not shares:
        return _untested("an update study (notebook 02)")
    numbers = f"ρ = 1 ends nearest the optimum on {sum(shares)} of {len(shares)} problems"
    return _mostly(sum(shares), len(shares), numbers)


def _better_update(findings: Findings) -> Outcome:
    pairs = []
    for problem in findings.problems():
        ours = admm_row(problem, 20)
        theirs = [row for row in problem["update"] if row["solver"] == "sparsegpt"]
        if ours and theirs:
            pairs.append((ours, theirs[0]))
    if not pairs:
        return _untested("an update study (notebook 02)")
    better = sum(a["error"] < b["error"] for a, b in pairs)
    unseen = sum(a["heldout"] < b["heldout"] for a, b in pairs)
    ratio = median(a["error"] / b["error"] for a, b in pairs)
    numbers = (
        f"lower error on {better} of {len(pairs)} problems (median {100 * ratio:.0f} % of "
        f"SparseGPT's), on held-out text on {unseen}"
    )
    return _mostly(better, len(pairs), numbers)


# ------------------------------------------------------------------ whole models


def _beats(findings: Findings, method: str, other: str, columns: Sequence[str]) -> Outcome:
    """Lower perplexity in every column that both have, seed by seed."""
    losses, shown = [], []
    for column in columns:
        ours, theirs = (findings.perplexities(name, column) for name in (method, other))
        seeds = sorted(set(ours) & set(theirs))
        if not seeds:
            continue
        losses += [f"{column} (seed {s})" for s in seeds if ours[s] >= theirs[s]]
        here, there = (mean(values[s] for s in seeds) for values in (ours, theirs))
        shown.append(f"{column}: {format_number(here)} < {format_number(there)}")
        if here >= there:
            shown[-1] = shown[-1].replace("<", "≥")
    if not shown:
        return _untested(f"runs of {method} and {other}")
    return Outcome(FAILS if losses else HOLDS, "; ".join(shown))


def _best_of_all(findings: Findings) -> Outcome:
    outcomes = [_beats(findings, "admm-grad", other, COLUMNS) for other in ("sparsegpt", "wanda")]
    if UNTESTED in {outcome.verdict for outcome in outcomes}:
        return next(outcome for outcome in outcomes if outcome.verdict == UNTESTED)
    names = ("against SparseGPT ", "against Wanda ")
    text = ". ".join(name + o.numbers for name, o in zip(names, outcomes, strict=True))
    return Outcome(HOLDS if all(o.verdict == HOLDS for o in outcomes) else FAILS, text)


def _gradual(findings: Findings) -> Outcome:
    return _beats(findings, "admm-grad", "admm1", COLUMNS)


def _against_default(
    findings: Findings, options: dict[str, Any], holds: Callable[[float, float], bool]
) -> Outcome:
    """The change of perplexity at 60 % by an option, beside the spread over seeds."""
    changed = findings.perplexities("admm-grad", "60 %", **options)
    plain = findings.perplexities("admm-grad", "60 %")
    seeds = sorted(set(changed) & set(plain))
    if not seeds:
        name = ", ".join(f"{key}={value}" for key, value in options.items())
        return _untested(f"a run of admm-grad at 60 % with {name}")
    change = mean(changed[s] / plain[s] - 1 for s in seeds)
    noise = findings.spread()
    numbers = (
        f"{format_number(mean(changed[s] for s in seeds))} against "
        f"{format_number(mean(plain[s] for s in seeds))}: {100 * change:+.1f} % "
        f"(spread over seeds {100 * noise:.1f} %)"
    )
    return Outcome(HOLDS if holds(change, noise) else FAILS, numbers)


def _overhead(findings: Findings) -> Outcome:
    parts = ("prune", "forward", "gram", "solve", "selection")
    seconds = {
        method: {part: findings.seconds(method, part) for part in parts}
        for method in ("admm-grad", "sparsegpt")
    }
    if any(cells["prune"] is None for cells in seconds.values()):
        return _untested("runs of admm-grad and sparsegpt")
    ratio = seconds["admm-grad"]["prune"] / seconds["sparsegpt"]["prune"]
    texts = [
        f"{method} {cells['prune']:.0f} s, of it {_solving(cells):.0f} s to solve"
        for method, cells in seconds.items()
    ]
    numbers = f"{'; '.join(texts)}; in all {ratio:.2f} times"
    return Outcome(HOLDS if ratio <= 1 + TOLERATED else FAILS, numbers)


def _solving(cells: Mapping[str, float | None]) -> float:
    """Seconds in solving and selecting."""
    return (cells["solve"] or 0.0) + (cells["selection"] or 0.0)


def _zero_shot_order(findings: Findings) -> Outcome:
    answers = findings.answers()
    order = ("wanda", "sparsegpt", "admm-grad")
    if not set(order) <= set(answers):
        return _untested("zero-shot runs of wanda, sparsegpt and admm-grad (notebook 05)")
    tasks = [task for task in TASK_NAMES if all(task in answers[name] for name in order)]
    scores = {n: mean(mean(answers[n][task]["acc"]) for task in tasks) for n in order}
    steps = []
    for lower, higher in zip(order, order[1:], strict=False):
        pairs = [
            paired_difference(answers[higher][t]["acc"], answers[lower][t]["acc"]) for t in tasks
        ]
        error = sum(e**2 for _, e in pairs) ** 0.5 / len(pairs)
        steps.append((mean(d for d, _ in pairs), error))
    means = ", ".join(f"{name} {score:.3f}" for name, score in scores.items())
    gaps = ", ".join(f"{difference:+.3f} ± {error:.3f}" for difference, error in steps)
    if any(difference < -2 * error for difference, error in steps):
        verdict = FAILS
    elif all(difference > 2 * error for difference, error in steps):
        verdict = HOLDS
    else:
        verdict = OPEN
    return Outcome(verdict, f"means {means}; steps {gaps} (paired, one standard error)")


def _released(findings: Findings) -> Outcome:
    changed = findings.perplexities("admm-grad", "60 %", schedule="released")
    plain = findings.perplexities("admm-grad", "60 %")
    seeds = sorted(set(changed) & set(plain))
    if not seeds:
        return _untested("runs of admm-grad at 60 % with schedule=released")
    changes = [100 * (changed[s] / plain[s] - 1) for s in seeds]
    noise = 100 * findings.spread()
    middle = mean(changes)
    name = "equals" if abs(middle) <= noise else "beats" if middle < 0 else "loses to"
    numbers = f"it {name} the paper's: {', '.join(f'{c:+.2f} %' for c in changes)} by seed"
    verdict = HOLDS if name == "equals" else FAILS
    return Outcome(verdict, f"{numbers} (spread over seeds {noise:.1f} %)")


def _untested(needed: str) -> Outcome:
    return Outcome(UNTESTED, f"needs {needed}")


def _own_models(findings: Findings) -> Outcome:
    return _untested("the plan `paper` on a GPU; published figures are in results/published")


SAME_MASK = "one fixed Wanda mask; each layer and sparsity is a problem; true on 90 % of at least 8"
CLAIMS = (
    Claim(
        "ADMM beats gradient methods per iteration.",
        f"Best of Adam and SGD over learning rates needs more than 20 iterations to come as near "
        f"to the optimum as 20 iterations of ADMM ({SAME_MASK}).",
        lambda findings: _race(findings, ("adam", "sgd"), "iterations"),
    ),
    Claim(
        "ADMM beats gradient methods per second.",
        "The same with seconds, ADMM's factorisation included.",
        lambda findings: _race(findings, ("adam", "sgd"), "seconds"),
    ),
    Claim(
        "ADMM also beats conjugate gradients (not in the paper).",
        "The same with conjugate gradients on the support, in seconds.",
        lambda findings: _race(findings, ("cg",), "seconds"),
    ),
    Claim(
        "On one mask ADMM updates the weights better than SparseGPT.",
        f"Lower relative error on calibration text ({SAME_MASK}).",
        _better_update,
    ),
    Claim(
        "20 iterations are enough for a layer.",
        f"The damped objective is within 1 % of its exact optimum ({SAME_MASK}).",
        _enough_iterations,
    ),
    Claim(
        "20 iterations are enough for a model.",
        "50 iterations do not lower perplexity at 60 % by more than the spread over seeds.",
        _more_iterations,
    ),
    Claim(
        "Preconditioning (inputs of unit norm) matters for a layer.",
        f"Smaller excess after 20 iterations than without it, at its best ρ ({SAME_MASK}).",
        _preconditioning_layer,
    ),
    Claim(
        "Preconditioning matters for a model.",
        "Without it perplexity at 60 % rises by more than the spread over seeds.",
        _preconditioning_model,
    ),
    Claim(
        "One ρ = 1 fits every layer.",
        f"After 20 iterations nearer the optimum than ρ = 0.1 and ρ = 10 ({SAME_MASK}).",
        _one_rho,
    ),
    Claim(
        "The gradual mask beats the one-shot mask at every sparsity.",
        "Lower perplexity of ADMM-Grad than of ADMM1 in every column, seed by seed.",
        _gradual,
    ),
    Claim(
        "ADMM-Grad beats SparseGPT and Wanda at 50 to 80 % and at 2:4.",
        "Lower perplexity in every column, seed by seed.",
        _best_of_all,
    ),
    Claim(
        "Its overhead is SparseGPT's.",
        "Seconds to prune the whole model at most 1.25 times SparseGPT's (unstructured runs).",
        _overhead,
    ),
    Claim(
        "Zero-shot means keep the order Wanda, SparseGPT, ADMM-Grad.",
        "Each step up exceeds two standard errors of the paired difference; a step down by more "
        "than two refutes it; else it is not decided.",
        _zero_shot_order,
    ),
    Claim(
        "The released schedule does as well as the paper's.",
        "Change of perplexity at 60 %, same seeds, no larger than the spread over seeds.",
        _released,
    ),
    Claim(
        "All this holds on LLaMA-7B and on LLaMA-2 up to 70B.",
        "The same tests on the records of the plan `paper`.",
        _own_models,
    ),
)


def check_claims(records: Iterable[Record]) -> list[tuple[Claim, Outcome]]:
    """Every claim with its verdict on the records of one model."""
    findings = Findings(records)
    return [(claim, claim.check(findings)) for claim in CLAIMS]


def claims_markdown(records: Iterable[Record]) -> str:
    """The verdicts as Markdown: a table of claims and numbers, then the words of each test."""
    checked = check_claims(records)
    lines = ["| | claim | verdict | numbers |", "| --: | :-- | :-- | :-- |"]
    for number, (claim, outcome) in enumerate(checked, start=1):
        lines.append(f"| {number} | {claim.sentence} | **{outcome.verdict}** | {outcome.numbers} |")
    lines += ["", "How each was tested:", ""]
    lines += [f"{n}. {claim.test}" for n, (claim, _) in enumerate(checked, start=1)]
    return "\n".join(lines) + "\n"


def write_claims(records: Iterable[Record], folder: str | os.PathLike[str]) -> list[Path]:
    """Write claims.md into a folder, a section a model, and return its path.

    Raises RecordError if the folder cannot be written.
    """
    models: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        if "model" in record["parameters"]:
            models[str(record["parameters"]["model"])].append(record)
    texts = [claims_markdown(runs) for runs in models.values()]
    if len(models) > 1:
        texts = [f"## {name}\n\n{text}" for name, text in zip(models, texts, strict=True)]
    return [replace_file(Path(folder) / "claims.md", "\n".join(texts))] if texts else []
