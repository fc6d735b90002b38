"""Claims about the weight update of a layer on a fixed mask (notebook 02)."""

import math
from collections.abc import Sequence

import pandas as pd

from helpers.report.evidence import (
    ENOUGH,
    Claim,
    Evidence,
    Margin,
    ModelResults,
    Row,
    cost_to_reach,
    untested,
)

# "on nearly all layers": the share of problems on which a claim must be true; up to MIDDLE it is
# not true of nearly all, and what lies between decides nothing
MOST = 0.9
MIDDLE = 0.5
FEWEST_LAYERS = 8  # fewer say nothing about nearly all layers
FLAT = 1.1  # a best learning rate at an end that is no better than this is not cut off
NEARLY = 2  # a ρ that needs at most so many times the iterations of the best one fits
ROUNDING = 1e-6  # an excess smaller than this is the rounding of float32
SHARED = ", on a shared machine"  # of seconds: none of the runs was timed alone


def _on_nearly_all(
    problems: pd.DataFrame,
    true: pd.Series,
    numbers: str,
    timed: bool = True,
) -> Evidence:
    """The evidence on a claim about nearly all layers that is true on some of the problems.

    true: NaN where that is not known. timed: False if the claim is about seconds, and they are not
    of runs that were timed alone.
    """
    if problems.empty:
        return untested("an update study (notebook 02)")
    most = math.ceil(MOST * len(problems))
    middle = math.floor(MIDDLE * len(problems))
    unknown = true.isna().sum()
    margin = true.sum() + unknown / 2 - (most + middle) / 2
    # so that `most` and `middle` themselves decide
    half = (most - middle + unknown) / 2 - 0.25
    layers = problems["layer"].nunique()
    if layers < FEWEST_LAYERS:
        numbers += f"; {layers} of the {FEWEST_LAYERS} layers that would decide"
    if layers < FEWEST_LAYERS or not timed:
        half = math.nan
    return Evidence([Margin(margin, half)], numbers)


def _tuned(curves: Sequence[Row], excess: float, unit: str) -> bool:
    """Whether no learning rate at an end of those tried is better than what lies between them."""
    rates = sorted({curve["learning_rate"] for curve in curves} - {None})
    between = [curve for curve in curves if curve["learning_rate"] in rates[1:-1]]
    best, inner = (cost_to_reach(some, excess, unit) for some in (curves, between))
    return not rates or inner <= FLAT * best


def _slower_than_admm(
    results: ModelResults, solvers: Sequence[str], unit: str, beside: str = ""
) -> Evidence:
    """How much more the best of `solvers` needs to get where ADMM is after 20 iterations.

    beside: a unit whose numbers are shown too.
    """
    problems = results.problems.dropna(subset="excess")
    timed = True
    if unit == "seconds":
        timed = problems["timed"].any()
        problems = problems[problems["timed"] == timed]
    rows = []
    for problem in problems.to_dict("records"):
        excess = max(problem["excess"], ROUNDING)
        rivals = [curve for curve in problem["curves"] if curve["solver"] in solvers]
        spent = cost_to_reach(rivals, excess, unit)
        tuned = all(
            _tuned(
                [curve for curve in rivals if curve["solver"] == solver], excess, unit
            )
            for solver in solvers
        )
        # a rival that was stopped before ADMM's own cost has not been beaten
        # one that diverged at once has a curve without points
        longest = max((curve[unit][-1] for curve in rivals if curve[unit]), default=0)
        if spent < math.inf or longest >= problem[unit]:
            rows.append((problem["layer"], spent / problem[unit], tuned))
    race = pd.DataFrame(rows, columns=["layer", "ratio", "tuned"])
    slower = race["ratio"] > 1
    tuned = race["tuned"].astype(bool)
    never = (race["ratio"] == math.inf).sum()
    numbers = (
        f"the rival needs {race['ratio'].median():.2g} times as many {unit} (median)"
        f"{'' if timed else SHARED}; more on {slower.sum()} of {len(race)} problems"
    )
    if never:
        numbers += f" (on {never} it did not get there)"
    if not tuned.all():
        numbers += f"; its best learning rate is inside those tried on {tuned.sum()}"
    if beside:
        shown = _slower_than_admm(results, solvers, beside).numbers
        numbers += f"; {shown.partition(';')[0]}"
    # a better rate could not make a rival that is ahead slower
    return _on_nearly_all(race, slower.where(tuned | ~slower), numbers, timed)


def _error_below_sparsegpts(results: ModelResults) -> Evidence:
    """On how many problems the error of ADMM is below that of SparseGPT."""
    both = results.problems.dropna(subset=["error", "sparsegpt_error"])
    better = both["error"] < both["sparsegpt_error"]
    heldout = both["heldout"] < both["sparsegpt_heldout"]
    percent = 100 * (both["error"] / both["sparsegpt_error"]).median()
    numbers = (
        f"{percent:.0f} % of SparseGPT's error (median); lower on {better.sum()} of {len(both)} "
        f"problems, on held-out text on {heldout.sum()}"
    )
    return _on_nearly_all(both, better, numbers)


def _twenty_iterations_suffice(results: ModelResults) -> Evidence:
    """On how many problems 20 iterations come within 1 % of the optimum."""
    solved = results.problems.dropna(subset="excess")
    within = solved["excess"] <= ENOUGH
    percent = 100 * solved["excess"]
    numbers = (
        f"at worst {percent.max():.2g} % above the optimum; median {percent.median():.2g} %; "
        f"within 1 % on {within.sum()} of {len(solved)} problems"
    )
    return _on_nearly_all(solved, within, numbers)


def _preconditioning_is_needed(results: ModelResults) -> Evidence:
    """On how many problems 20 iterations suffice only with preconditioning."""
    both = results.problems.dropna(subset=["scaled", "unscaled"])
    scaled = both["scaled"]
    unscaled = both["unscaled"]
    numbers = (
        f"at the best ρ they suffice without it on {(unscaled <= 20).sum()} of {len(both)} "
        f"problems; {(unscaled > scaled).sum()} need more than with it; {scaled.median():.2g} "
        f"iterations to 1 % with, {unscaled.median():.2g} without (median)"
    )
    return _on_nearly_all(both, (scaled <= 20) & (unscaled > 20), numbers)


def _one_rho_fits(results: ModelResults) -> Evidence:
    """On how many problems ρ = 1 needs at most NEARLY times the iterations of the best ρ."""
    tried = results.problems.query("rhos > 1").dropna(subset="one_rho")
    ratio = tried["one_rho"] / tried["scaled"]  # NaN where no ρ gets there
    fits = ratio <= NEARLY
    times = f"at most {ratio.max():.2g} times the iterations of the best ρ"
    if ratio.max() == 1:
        times = "no other ρ was faster"
    numbers = (
        f"{times}, of up to {tried['rhos'].max():.0f} tried; "
        f"{tried['one_rho'].median():.2g} iterations to 1 % (median); up to {NEARLY} times the "
        f"best's on {fits.sum()} of {len(tried)} problems"
    )
    return _on_nearly_all(tried, fits, numbers)


LAYER_CLAIMS = (
    Claim(
        1,
        "ADMM beats gradient methods per iteration.",
        "The best of Adam, over learning rates, and SGD, over momenta, with or without "
        "preconditioning, needs more than 20 iterations to come as near to the optimum as 20 "
        "iterations of ADMM. Where the best rate of one is the smallest or the largest tried, and "
        "by more than a tenth, nothing is known.",
        "weight_update",
        lambda results: _slower_than_admm(results, ("adam", "sgd"), "iterations"),
    ),
    Claim(
        2,
        "ADMM beats gradient methods per second.",
        "The same with seconds, ADMM's factorisation included.",
        "weight_update",
        lambda results: _slower_than_admm(results, ("adam", "sgd"), "seconds"),
    ),
    Claim(
        3,
        "ADMM also beats conjugate gradients per iteration (not in the paper).",
        "The same with conjugate gradients on the support. Seconds are shown, and decide nothing.",
        "weight_update",
        lambda results: _slower_than_admm(
            results, ("cg",), "iterations", beside="seconds"
        ),
    ),
    Claim(
        4,
        "On one mask ADMM updates the weights better than SparseGPT.",
        "Lower relative error on calibration text after 20 iterations.",
        "weight_update",
        _error_below_sparsegpts,
    ),
    Claim(
        5,
        "20 iterations are enough for a layer.",
        "The damped objective is within 1 % of its exact optimum.",
        "weight_update",
        _twenty_iterations_suffice,
    ),
    Claim(
        7,
        "On one mask, 20 iterations are enough for a layer only with preconditioning.",
        "Preconditioning gives all inputs unit norm. Without it, at the best ρ tried and with one "
        "scale for all inputs instead, 20 iterations do not get within 1 % of the optimum, and "
        "with it they do. For the gradual mask of a model see claim 8.",
        "weight_update",
        _preconditioning_is_needed,
    ),
    Claim(
        9,
        "One ρ = 1 fits every layer.",
        "With it the damped objective is within 1 % of its optimum in at most twice the iterations "
        "that the best ρ tried for the layer needs. The ρ tried are a factor of three apart, so "
        "this could hardly fail.",
        "weight_update",
        _one_rho_fits,
    ),
)
