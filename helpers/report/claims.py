"""The paper's claims, each with a test on the records of a plan and a verdict.

A claim is a sentence, the words of its test with its tolerance, and a function of the records
that gives a verdict and the numbers it rests on. Without the records that a test needs the verdict
is "not tested here"; with too few of them to tell (few seeds, some of the sparsities, a handful of
layers, seconds of runs that shared the machine) or within the noise it is "not decided here".
"""

from __future__ import annotations

import json
import math
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from helpers.paths import replace_file
from helpers.report import frame, tables
from helpers.report.frame import ENOUGH, PRUNE_PARTS, TASK_NAMES, Record, cost_to_reach
from helpers.report.outcome import FAILS, HOLDS, OPEN, Claim, Outcome, between, untested
from helpers.report.published import MODEL_NAMES
from helpers.report.repair_claims import REPAIR_CLAIMS

SPARSITIES = ("50 %", "60 %", "70 %", "80 %")
PATTERNS = ("2:4", "4:8")
SEEDED = "60 %"  # the column that is run with several seeds
SEEDS = 5  # fewer decide nothing about a model's perplexity
TASK_SEEDS = 3  # nor about its answers, which the choice of items moves as much
MOST = 0.9  # "on nearly all layers": the share of problems on which a claim must be true
FEWEST = 8  # layers; fewer say nothing about nearly all layers
TOLERATED = 0.25  # an overhead this much larger still counts as the same
NEARLY = 2  # a ρ that needs at most so many times the iterations of the best one fits
ROUNDING = 1e-6  # an excess smaller than this is the rounding of float32
LEAST_DAMAGE = 0.1  # ln(perplexity / dense); noise is not scaled by less


class Judged(NamedTuple):
    """A claim's sentence with its condition, and what the records say of it (see `Outcome`)."""

    sentence: str
    verdict: str
    numbers: str
    leans: str


class Findings:
    """The records of one model as the claims ask for them."""

    def __init__(self, records: Iterable[Record]) -> None:
        self.records = list(records)
        # in the setting that most share
        self.pruned, self.scored = (
            frame.run_frame(self.records, notebook).query("usual")
            for notebook in (frame.PRUNE_NOTEBOOK, frame.ZERO_SHOT_NOTEBOOK)
        )
        self.problems = frame.problem_frame(self.records)
        self.dense = self.pruned.query("method == 'dense'")["perplexity"].mean()

    def paired(self, target: str, other: str, timed: bool = False, **options: Any) -> pd.DataFrame:
        """ADMM-Grad with options and another method at a target, a row for each seed of both.

        The columns of the other end in "_". Records of one seed, be they copies or different in
        rounding (another machine, other threads), are one draw of the calibration text: their mean
        counts, and the first is the row's record. timed: only runs that were timed alone.
        """
        at = self.pruned[(self.pruned["target"] == target) & (self.pruned["timed"] | (not timed))]
        sides = []
        for method, asked in (("admm-grad", options), (other, {})):
            runs = at[(at["method"] == method) & (at["options"] == json.dumps(asked))]
            means = runs[frame.NUMBERS].groupby(runs["seed"]).mean()
            sides.append(means.join(runs.drop_duplicates("seed").set_index("seed")["record"]))
        return sides[0].merge(sides[1], left_index=True, right_index=True, suffixes=("", "_"))


# ------------------------------------------------------------------ the update on a fixed mask


def _on_nearly_all(problems: pd.DataFrame, true: pd.Series, numbers: str) -> Outcome:
    """The verdict on a claim about nearly all layers that is true on some of the problems."""
    if problems.empty:
        return untested("an update study (notebook 02)")
    layers = problems["layer"].nunique()
    leans = HOLDS if true.sum() >= MOST * len(problems) else FAILS
    if layers < FEWEST:
        return Outcome(OPEN, f"{numbers}; {layers} of the {FEWEST} layers that would decide", leans)
    return Outcome(leans, numbers, leans)


def _race(findings: Findings, solvers: Sequence[str], unit: str) -> Outcome:
    """How much more the best of `solvers` needs to get where ADMM is after 20 iterations."""
    problems = findings.problems.dropna(subset="excess")
    timed = problems[problems["timed"]] if unit == "seconds" else problems
    problems, shared = (problems, True) if timed.empty else (timed, False)
    rows = []
    for problem in problems.to_dict("records"):
        # a rival that diverged at once has a curve without points
        rivals = [c for c in problem["curves"] if c["solver"] in solvers and c[unit]]
        spent = cost_to_reach(rivals, max(problem["excess"], ROUNDING), unit)
        # a rival that was stopped before ADMM's own cost has not been beaten
        if spent < math.inf or any(curve[unit][-1] >= problem[unit] for curve in rivals):
            near = [cost_to_reach(curves, ENOUGH, unit) for curves in (problem["usual"], rivals)]
            rows.append((problem["layer"], spent / problem[unit], *near))
    race = pd.DataFrame(rows, columns=["layer", "ratio", "ours", "theirs"])
    slower, never = race["ratio"] > 1, (race["ratio"] == math.inf).sum()
    ratio, ours, theirs = race[["ratio", "ours", "theirs"]].astype(float).median()
    numbers = (
        f"the rival needs more on {slower.sum()} of {len(race)} problems, in the median "
        f"{'more than it was given' if ratio == math.inf else f'{ratio:.2g} times as many'}"
        f"{f' (on {never} it did not get there)' if never else ''}; to be "
        f"within 1 % of the optimum ADMM needs {ours:.2g} {unit}, the rival {theirs:.2g}"
    )
    outcome = _on_nearly_all(race, slower, numbers)
    if shared and len(race):
        return outcome._replace(verdict=OPEN, numbers=f"{outcome.numbers}; {NOT_ALONE}")
    return outcome


def _enough_iterations(findings: Findings) -> Outcome:
    solved = findings.problems.dropna(subset="excess")
    within = solved["excess"] <= ENOUGH
    numbers = (
        f"excess after 20 iterations: median {100 * solved['excess'].median():.2g} %, worst "
        f"{100 * solved['excess'].max():.2g} %; within 1 % on {within.sum()} of {len(solved)} "
        "problems"
    )
    return _on_nearly_all(solved, within, numbers)


def _preconditioning_layer(findings: Findings) -> Outcome:
    both = findings.problems.dropna(subset=["scaled", "unscaled"])
    scaled, unscaled = both["scaled"], both["unscaled"]
    numbers = (
        f"without it 20 iterations miss 1 % on {(unscaled > 20).sum()} of {len(both)} problems; "
        f"iterations to 1 %: median {scaled.median():.2g} with, {unscaled.median():.2g} without; "
        f"more without on {(unscaled > scaled).sum()}"
    )
    return _on_nearly_all(both, (scaled <= 20) & (unscaled > 20), numbers)


def _one_rho(findings: Findings) -> Outcome:
    tried = findings.problems.query("rhos > 1").dropna(subset="one_rho")
    ratio = tried["one_rho"] / tried["scaled"]  # NaN where no ρ gets there
    soonest = tried["best_rho"].value_counts().sort_index()
    numbers = (
        f"iterations to 1 %: median {tried['one_rho'].median():.2g} with ρ = 1, "
        f"{tried['scaled'].median():.2g} with the best of up to {tried['rhos'].max():.0f} values; "
        f"at most {NEARLY} times as many on {(ratio <= NEARLY).sum()} of {len(tried)} problems, at "
        f"worst {ratio.max():.2g} times; soonest was "
        f"{', '.join(f'ρ = {rho:g} on {count}' for rho, count in soonest.items())}"
    )
    return _on_nearly_all(tried, ratio <= NEARLY, numbers)


def _better_update(findings: Findings) -> Outcome:
    both = findings.problems.dropna(subset=["error", "sparsegpt_error"])
    better = both["error"] < both["sparsegpt_error"]
    numbers = (
        f"lower error on {better.sum()} of {len(both)} problems (median "
        f"{100 * (both['error'] / both['sparsegpt_error']).median():.0f} % of SparseGPT's), on "
        f"held-out text on {(both['heldout'] < both['sparsegpt_heldout']).sum()}"
    )
    return _on_nearly_all(both, better, numbers)


# ------------------------------------------------------------------ whole models


def _damage(findings: Findings, both: pd.DataFrame) -> float:
    """ln(perplexity / dense), the mean of two methods and their seeds; NaN without a dense run."""
    logs = np.log(both[["perplexity", "perplexity_"]] / findings.dense)
    return np.maximum(logs.to_numpy().mean(), LEAST_DAMAGE)


def _duels(findings: Findings, other: str, columns: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """ADMM-Grad against another method, by column: mean ln of the ratio of perplexities, and half
    of its 95 % interval, NaN where nothing says how far it is.

    A column with fewer seeds than SEEDED takes the interval of that, scaled by the damage: what
    seeds and rounding do to ln(perplexity) grows with it.
    """
    pairs = {c: both for c in columns if len(both := findings.paired(c, other))}
    logs = {c: list(np.log(both["perplexity"] / both["perplexity_"])) for c, both in pairs.items()}
    found = {}
    for column, both in pairs.items():
        mean, half = tables.interval(logs[column])
        if SEEDED in pairs and len(both) < len(pairs[SEEDED]):
            seeded, half = pairs[SEEDED], tables.interval(logs[SEEDED])[1]
            half *= _damage(findings, both) / _damage(findings, seeded)
            half *= math.sqrt(len(seeded) / len(both))
        found[column] = mean, half
    return found


def _beats(
    findings: Findings, others: Sequence[str], needed: Sequence[str], wanted: Sequence[str] = ()
) -> Outcome:
    """ADMM-Grad has lower perplexity than `others` in all columns, by more than the noise.

    The columns of `needed` must be there; those of `wanted` count as far as they are.
    """
    changes, shown, missing = [], [], []
    for other in others:
        found = _duels(findings, other, (*needed, *wanted))
        missing += [f"{other} at {column}" for column in needed if column not in found]
        changes += found.values()
        texts = [
            f"{column} {100 * math.expm1(mean):+.0f}"
            f"{'' if math.isnan(half) else f' ± {100 * half * math.exp(mean):.0f}'} %"
            for column, (mean, half) in found.items()
        ]
        shown += [f"against {other}: {', '.join(texts)}"] if texts else []
    if not changes:
        return untested(f"runs of admm-grad and {' and '.join(others)}")
    seeds = min(len(findings.paired(SEEDED, other)) for other in others)
    lacking = [f"{seeds} of {SEEDS} seeds at {SEEDED}"] if seeds < SEEDS else []
    if math.isnan(findings.dense) and any(math.isnan(half) for _, half in changes):
        lacking.append("no dense run to scale the noise by")
    lacking += [f"not run: {', '.join(missing)}"] if missing else []
    numbers = "; ".join([*shown, *(lacking or [f"{seeds} seeds at {SEEDED}"])])
    verdict, leans = between(changes, most=0.0)
    if seeds < SEEDS or (lacking and verdict != FAILS):
        verdict = OPEN
    return Outcome(verdict, numbers, leans)


_best_of_all = partial(_beats, others=("sparsegpt", "wanda"), needed=(*SPARSITIES, "2:4"))


def _own_models(findings: Findings) -> Outcome:
    if not any(r["parameters"].get("model") in MODEL_NAMES for r in findings.records):
        return untested("the plan `paper` on a GPU; published figures are in helpers/report/papers")
    return _best_of_all(findings)


def _option(
    findings: Findings, least: float = -math.inf, most: float = math.inf, **options: Any
) -> Outcome:
    """Whether an option of ADMM-Grad changes perplexity at 60 % by a share in these bounds."""
    both = findings.paired(SEEDED, "admm-grad", **options)
    if both.empty:
        name = ", ".join(f"{key}={value}" for key, value in options.items())
        return untested(f"runs of admm-grad at {SEEDED} with {name}")
    here, there = both["perplexity"], both["perplexity_"]
    changes = list(here / there - 1)
    means = " against ".join(tables.format_number(runs.mean()) for runs in (here, there))
    shown = f"{means}; by seed {', '.join(f'{100 * change:+.2f} %' for change in changes)}"
    change, half = tables.interval(changes)
    if len(changes) > 1:
        shown += f"; mean {100 * change:+.2f} ± {100 * half:.2f} %"
    verdict, leans = between([(change, half)], least, most)
    if (seeds := len(both)) < SEEDS:
        return Outcome(OPEN, f"{shown}; {seeds} of {SEEDS} seeds", leans)
    return Outcome(verdict, shown, leans)


def _overhead(findings: Findings) -> Outcome:
    """Forward passes and grams are the same work, so their median counts for both methods."""
    timed, every = (
        pd.concat([findings.paired(column, "sparsegpt", timed=alone) for column in SPARSITIES])
        for alone in (True, False)
    )
    both = every if timed.empty else timed
    ours, theirs = (  # on a GPU gram and selection are not timed apart, and NaN
        both[[f"{part}_seconds{end}" for part in PRUNE_PARTS]].set_axis(PRUNE_PARTS, axis=1)
        for end in ("", "_")
    )
    alike = (ours.notna() == theirs.notna()).all(axis=1) & ours.notna().any(axis=1)
    if not alike.any():
        return untested("runs of admm-grad and sparsegpt, timed in parts")
    ours, theirs, record = ours[alike], theirs[alike], both["record"][alike].iloc[0]
    common = pd.concat([ours, theirs])[["forward", "gram"]].sum(axis=1).median()
    own, other = (runs[["solve", "selection"]].sum(axis=1).mean() for runs in (ours, theirs))
    ratio = (common + own) / (common + other)
    asked = record["parameters"]
    # the calibration decides how much the passes weigh, and threads how much selecting does
    condition = f"{asked['sequences']} x {asked['length']} calibration tokens, {record['device']}"
    numbers = (
        f"solving and selecting: admm-grad {own:.0f} s, sparsegpt {other:.0f} s; with the "
        f"{common:.0f} s of forward passes and grams {ratio:.2f} times as long"
    )
    leans = HOLDS if ratio <= 1 + TOLERATED else FAILS
    if timed.empty:
        return Outcome(OPEN, f"{numbers}; {NOT_ALONE}", leans, condition)
    return Outcome(leans, numbers, leans, condition)


def _more_answers(findings: Findings, pairs: Sequence[tuple[str, str]]) -> Outcome:
    """Of each pair (better, worse): the mean difference on the items that all seeds were asked."""
    for _, at in findings.scored.query("options == '{}'").groupby("target"):
        steps = defaultdict(list)  # by seed: task → (difference, standard error)
        for _, runs in at.groupby("seed"):
            rows = tables.zero_shot_runs(runs["record"]).items()
            answers = {row.partition(",")[0]: found["series"]["zero_shot"] for row, found in rows}
            for high, low in pairs:
                if tasks := tables.paired_tasks(answers.get(high, {}), answers.get(low, {})):
                    steps[f"{high} − {low}"].append(tasks)
        every = [tasks for found in steps.values() for tasks in found]
        shared = [task for task in TASK_NAMES if all(task in tasks for tasks in every)]
        if len(steps) < len(pairs) or not shared:
            continue
        found = {}
        for name, runs in steps.items():
            means = [tables.mean_of_tasks([tasks[task] for task in shared]) for tasks in runs]
            step, half = tables.interval([mean for mean, _ in means])
            # seeds share their items, so that the error from the items does not shrink with them
            items = 2 * sum(error for _, error in means) / len(means)
            found[name] = step, math.hypot(np.nan_to_num(half), items)
        seeds = min(map(len, steps.values()))
        shown = [f"{name} {step:+.3f} ± {error:.3f}" for name, (step, error) in found.items()]
        numbers = f"mean over {', '.join(map(TASK_NAMES.get, shared))}: {', '.join(shown)}"
        verdict, leans = between(found.values(), least=0.0)
        few = f" of {TASK_SEEDS}" if seeds < TASK_SEEDS else ""
        return Outcome(OPEN if few else verdict, f"{numbers}; {seeds}{few} seeds", leans)
    needed = " and ".join(dict.fromkeys(method for pair in pairs for method in pair))
    return untested(f"zero-shot runs of {needed} on the same items")


NOT_ALONE = "the seconds are of runs that shared the machine: none was timed alone"
SAME_MASK = (
    f"one mask by Wanda's score, budget per matrix; a problem is a layer at a sparsity; must be "
    f"true on {100 * MOST:.0f} % of them, and on at least {FEWEST} layers"
)
ALONE = "only timed runs count, each the only one of its plan at its time"
PAIRED = (
    f"paired by seed; decided where Student's 95 % interval of the mean, with at least {SEEDS} "
    "seeds, is on one side of that limit"
)
NOISE = (
    f"by more than Student's 95 % interval of the mean ln ratio by seed, with at least {SEEDS} "
    f"seeds at {SEEDED}; a column with fewer seeds takes the interval at {SEEDED}, scaled by the "
    "damage ln(perplexity / dense) and by its number of seeds"
)
STEP = (
    f"The mean over tasks is higher by more than its error, with at least {TASK_SEEDS} seeds: two "
    "standard errors over paired items and Student's 95 % interval over seeds, added in quadrature."
)
CLAIMS = (
    Claim(
        "ADMM beats gradient methods per iteration.",
        "The best of Adam and SGD with momentum, over learning rates and with or without "
        "preconditioning, needs more than 20 iterations to come as near to the optimum as 20 "
        f"iterations of ADMM ({SAME_MASK}).",
        partial(_race, solvers=("adam", "sgd"), unit="iterations"),
    ),
    Claim(
        "ADMM beats gradient methods per second.",
        f"The same with seconds, ADMM's factorisation included; {ALONE}.",
        partial(_race, solvers=("adam", "sgd"), unit="seconds"),
    ),
    Claim(
        "ADMM also beats conjugate gradients (not in the paper).",
        f"The same with conjugate gradients on the support, in seconds; {ALONE}.",
        partial(_race, solvers=("cg",), unit="seconds"),
    ),
    Claim(
        "On one mask ADMM updates the weights better than SparseGPT.",
        f"Lower relative error on calibration text after 20 iterations ({SAME_MASK}).",
        _better_update,
    ),
    Claim(
        "20 iterations are enough for a layer.",
        f"The damped objective is within 1 % of its exact optimum ({SAME_MASK}).",
        _enough_iterations,
    ),
    Claim(
        "20 iterations are enough for a model.",
        f"50 iterations lower perplexity at 60 % by no more than 1 %, {PAIRED}.",
        partial(_option, least=-ENOUGH, iterations=50),
    ),
    Claim(
        "Preconditioning (inputs of unit norm) matters for a layer.",
        "Without it, at the best ρ tried and with one scale for all inputs instead, 20 iterations "
        f"do not get within 1 % of the optimum, and with it they do ({SAME_MASK}).",
        _preconditioning_layer,
    ),
    Claim(
        "Preconditioning matters for a model.",
        f"Without it, at ρ = 1, perplexity at 60 % rises by more than 1 %, {PAIRED}.",
        partial(_option, least=ENOUGH, precondition=False),
    ),
    Claim(
        "One ρ = 1 fits every layer.",
        f"With it the damped objective is within 1 % of its optimum in at most {NEARLY} times "
        f"the iterations that the best ρ tried for the layer needs ({SAME_MASK}).",
        _one_rho,
    ),
    Claim(
        "The gradual mask beats the one-shot mask at every sparsity.",
        f"Lower perplexity of ADMM-Grad than of ADMM1 at 50, 60, 70 and 80 % {NOISE}; 2:4 and 4:8 "
        "count where they were run.",
        partial(_beats, others=("admm1",), needed=SPARSITIES, wanted=PATTERNS),
    ),
    Claim(
        "ADMM-Grad beats SparseGPT and Wanda at 50 to 80 % and at 2:4.",
        f"Lower perplexity at 50, 60, 70, 80 % and at 2:4 {NOISE}.",
        _best_of_all,
    ),
    Claim(
        "ADMM-Grad takes about as long as SparseGPT.",
        f"At most {1 + TOLERATED:g} times the seconds of SparseGPT, same cells and seeds; forward "
        f"passes and grams, the same work for both, enter as their median; {ALONE}. More "
        "calibration text brings the ratio nearer to 1.",
        _overhead,
    ),
    Claim(
        "ADMM-Grad answers more zero-shot questions than SparseGPT and Wanda.",
        STEP,
        partial(_more_answers, pairs=[("admm-grad", "sparsegpt"), ("admm-grad", "wanda")]),
    ),
    Claim(
        "SparseGPT answers more zero-shot questions than Wanda.",
        STEP,
        partial(_more_answers, pairs=[("sparsegpt", "wanda")]),
    ),
    Claim(
        "The released schedule equals the paper's.",
        f"Perplexity at 60 % changes by no more than 1 %, {PAIRED}.",
        partial(_option, least=-ENOUGH, most=ENOUGH, schedule="released"),
    ),
    Claim(
        "ADMM-Grad wins on the paper's own models too.",
        "Claim 11 on the records of the plan `paper`, each model by itself.",
        _own_models,
    ),
    *REPAIR_CLAIMS,
)


def claim_verdicts(records: Iterable[Record]) -> list[Judged]:
    """What the records of one model say of each claim, in the order of CLAIMS."""
    findings, judged = Findings(records), []
    for claim in CLAIMS:
        verdict, numbers, leans, condition = claim.check(findings)
        numbers = re.sub(r"(?<![\w.])-(?=\d)", "−", numbers)  # as wide as a plus
        sentence = f"{claim.sentence.removesuffix('.')} ({condition})." if condition else None
        judged.append(Judged(sentence or claim.sentence, verdict, numbers, leans))
    return judged


def claims_markdown(records: Iterable[Record]) -> str:
    """The verdicts on the records of one model: a table of claims, then the words of each test."""
    records = list(records)
    lines = [tables.about_model(records), ""] * bool(records)
    lines += ["| | claim | verdict | numbers |", "| --: | :-- | :-- | :-- |"]
    for number, (sentence, verdict, numbers, _) in enumerate(claim_verdicts(records), start=1):
        lines.append(f"| {number} | {sentence} | **{verdict}** | {numbers} |")
    lines += ["", "How each was tested:", ""]
    lines += [f"{number}. {claim.test}" for number, claim in enumerate(CLAIMS, start=1)]
    return "\n".join(lines) + "\n"


def write_claims(records: Iterable[Record], folder: str | os.PathLike[str]) -> list[Path]:
    """Write claims.md into a folder, a section a model; its path. Raises FileError."""
    texts = {model: claims_markdown(runs) for model, runs in frame.by_model(records).items()}
    if len(texts) > 1:
        texts = {model: f"## {model}\n\n{text}" for model, text in texts.items()}
    path = Path(folder) / "claims.md"
    return [replace_file(path, "\n".join(texts.values()))] if texts else []
