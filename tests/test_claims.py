"""Claims: hand-written records on both sides of every limit, so that a verdict can be foreseen."""

import argparse
import itertools
import math
import re
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from handmade import pruned, repaired, scored, update_row, with_series

from helpers.paths import reference_dir, root
from reproduction import (
    claim_draws,
    claim_words,
    claims,
    claims_page,
    claims_tested,
    earlier,
)
from reproduction.claim_words import count_sentence
from reproduction.claims import (
    CLAIMS,
    FAILS,
    HOLDS,
    OPEN,
    OURS,
    UNTESTED,
    holm,
    judge_claims,
)
from reproduction.claims_page import claims_markdown
from reproduction.claims_tested import details_markdown

BY_NUMBER = {claim.number: claim for claim in CLAIMS}
COLUMNS = ("50 %", "60 %", "70 %", "80 %", "2:4", "4:8")
# factors of five draws, whose logarithms have a deviation of 2 %
FIVE = np.exp(np.array([-0.02, -0.02, 0.0, 0.02, 0.02]))
ASSUMED = "its direction is assumed"  # what a claim says whose source is a table alone
T4 = 2.776  # Student's quantile of 97.5 % with four degrees of freedom


def judged(number, records):
    """The verdict on one claim, and its columns."""
    verdicts, rows = judge_claims(records, [BY_NUMBER[number]])
    return verdicts.iloc[0], rows


def column(rows, at, quantity="perplexity"):
    """The first row of a column."""
    return rows[(rows["at"] == at) & (rows["quantity"] == quantity)].iloc[0]


# ------------------------------------------------------------------ records of models


def draws(method, at, value, factors=FIVE, **more):
    """A run for each draw, with perplexities that differ by these factors."""
    return [
        pruned(method, at, value * factor, seed, **more)
        for seed, factor in enumerate(factors)
    ]


def against(values, rivals, columns=COLUMNS, method="admm-grad", **special):
    """Five draws of a method in each column, and of rivals without any luck.

    values: by how much the method's perplexity differs. special: other factors for a column.
    """
    runs = []
    for at in columns:
        change, factors = special.get(at, (values, FIVE))
        runs += draws(method, at, 20 * (1 + change), factors)
        for rival in rivals:
            runs += draws(rival, at, 20.0, [1.0] * len(factors))
    return runs


def perplexity_cases(*rivals, method="admm-grad"):
    """A method lower in all columns, higher in one, level in one, and with two draws in one."""
    return {
        HOLDS: against(-0.1, rivals, method=method),
        # 4.3 % higher: four half intervals of one column, times six (or twelve) columns
        FAILS: against(-0.1, rivals, method=method, **{"70 %": (0.15, FIVE)}),
        OPEN: against(-0.1, rivals, method=method, **{"70 %": (-0.01, FIVE)}),
        UNTESTED: against(-0.1, rivals, method=method, **{"70 %": (-0.1, FIVE[:2])}),
    }


def option_cases(options, holds, fails, level):
    """An option of ADMM-Grad that changes perplexity at 60 % by so much."""

    def runs(change, factors=FIVE):
        other = draws("admm-grad", "60 %", 20 * (1 + change), factors, options=options)
        return other + draws("admm-grad", "60 %", 20.0, [1.0] * len(factors))

    return {
        HOLDS: runs(holds, FIVE**0.1),
        FAILS: runs(fails, FIVE**0.1),
        OPEN: runs(level),
        UNTESTED: runs(holds, FIVE[:2]),
    }


def timed(*seconds, alone=True):
    """Pairs of ADMM-Grad and SparseGPT, which takes 100 s, a draw each."""
    runs = []
    for seed, own in enumerate(seconds):
        for method, total in (("admm-grad", own), ("sparsegpt", 100.0)):
            parts = {"forward": 50.0, "solve": total - 50.0, "prune": total}
            run = pruned(method, "60 %", 20.0, seed, parts)
            runs.append(run | {"timed": alone})
    return runs


# ------------------------------------------------------------------ records of answers


def answers(right, count=3, target="50 %", other_questions=False, **more):
    """Draws of methods with so many right answers of 100, by method; a list: by draw."""
    runs = []
    for method, numbers in right.items():
        numbers = numbers if isinstance(numbers, list) else [numbers] * count
        for seed, number in enumerate(numbers):
            own = [1] * number + [0] * (100 - number)
            run = scored(method.removesuffix("+"), rte=own, lambada_openai=own)
            for task in run["series"]["zero_shot"].values():
                task["items"] = [
                    item + 100 * seed * other_questions for item in range(100)
                ]
            sparsity = float(target.rstrip(" %")) / 100
            run["parameters"] |= {"calibration_seed": seed, "sparsity": sparsity} | more
            run["parameters"]["effort"] = "balanced" if method.endswith("+") else ""
            runs.append(run)
    return runs


# a step of 20 of 100 in two tasks has an error of 2.8; what sways by 10 from draw to draw is open
ANSWERS = {
    13: {
        HOLDS: answers({"admm-grad": 70, "sparsegpt": 50, "wanda": 50}),
        FAILS: answers({"admm-grad": 50, "sparsegpt": 30, "wanda": 70}),
        OPEN: answers({"admm-grad": 70, "sparsegpt": 50, "wanda": [50, 60, 90]}),
        UNTESTED: answers({"admm-grad": 70, "wanda": 50}),
    },
    14: {
        HOLDS: answers({"sparsegpt": 70, "wanda": 50}),
        FAILS: answers({"sparsegpt": 50, "wanda": 70}),
        OPEN: answers({"sparsegpt": 51, "wanda": 50}),
        UNTESTED: answers({"sparsegpt": 70, "wanda": 50}, count=2),
    },
    22: {
        HOLDS: answers({"admm-grad+": 70, "admm-grad": 50}),
        FAILS: answers({"admm-grad+": 50, "admm-grad": 70}),
        OPEN: answers({"admm-grad+": 51, "admm-grad": 50}),
        UNTESTED: answers({"admm-grad+": 70, "admm-grad": 50}, count=2),
    },
}
ANSWERS[23] = ANSWERS[22]


# ------------------------------------------------------------------ records of pipelines


def pipelines(
    after, seconds, columns=("60 %", "70 %"), count=3, method="admm-grad", **more
):
    """Draws of guide, method and repair, and of plain ADMM-Grad, which has 80 in 100 s.

    The dense model has 20, so that 40 closes half. after, seconds: of the whole, which differ by
    1 % from draw to draw.
    """
    runs = []
    for at in columns:
        for seed in range(count):
            factor = 1 + (seed - 1) / 100
            guided = {"allocation": "guide", "passes": 1, "precision": "float32"} | more
            own = (seconds * factor - 100.0, 50.0, 50.0)
            layers = after * factor if guided.get("repair") == "" else 60.0
            whole = None if guided.pop("repair", 1) == "" else after * factor
            runs.append(
                repaired(method, at, layers, whole, seed, seconds=own, **guided)
            )
            runs.append(repaired("admm-grad", at, 80.0, seed=seed))
    return [run | {"timed": True} for run in runs]


def pipeline_cases(after, worse, level, seconds, **more):
    """Closes enough, too little, about the limit, and all that in too many seconds."""
    return {
        HOLDS: pipelines(after, seconds, **more),
        FAILS: pipelines(worse, seconds, **more),
        OPEN: pipelines(level, seconds, **more),
        UNTESTED: pipelines(after, seconds, count=2, **more),
    }


TWO = {
    "guide_sequences": 2,
    "repair": "",
}  # 69.6 closes a tenth: ln(80 / 69.6) / ln 4 = 0.1005
LOWER = {"precision": "bfloat16"}
SPARSEGPT = pipelines(44.0, 400.0, method="sparsegpt")


# ------------------------------------------------------------------ records of layers


def admm(excess, **changes):
    return update_row("admm", 20, excess=excess, **changes)


def curve(solver, *excess, **changes):
    """After 10, 30 and 100 iterations of 0.1 s."""
    points = {
        "iterations": [10, 30, 100],
        "seconds": [1.0, 3.0, 10.0],
        "excess": list(excess),
    }
    row = update_row(solver, precondition=False, damping=0.1, rho=1.0)
    return row | points | changes


def layers(count, rows, curves=(), first=0, alone=True):
    """The same study of so many layers."""
    series = {"update": rows, "curves": list(curves)}
    return [
        with_series("02", {"layer": "q", "damping": 0.1, "block": block}, **series)
        | {"timed": alone}
        for block in range(first, first + count)
    ]


def layer_cases(good, bad):
    """Ten layers of which ten, five or seven are good, and seven layers that are all good."""
    return {
        HOLDS: layers(10, *good),
        FAILS: layers(5, *good) + layers(5, *bad, first=5),
        OPEN: layers(7, *good) + layers(3, *bad, first=7),
        UNTESTED: layers(7, *good),
    }


OURS_IS_2S = [admm(0.05, seconds=2.0)]
SLOW = curve("sgd", 0.9, 0.9, 0.05)  # 100 iterations, 10 s
QUICK = curve("adam", 0.01, 0.01, 0.01)  # 10 iterations, 1 s


def rho_curves(scaled, other, **changes):
    """A curve with preconditioning, and one without it unless changed."""
    return [curve("admm", *scaled, precondition=True), curve("admm", *other, **changes)]


EARLY, LATE = (0.005, 0.005, 0.005), (0.5, 0.005, 0.001)  # 10 and 29 iterations to 1 %
THREE = {"rho": 3.0, "precondition": True}

CASES = {
    1: layer_cases((OURS_IS_2S, [SLOW]), (OURS_IS_2S, [QUICK])),
    2: layer_cases((OURS_IS_2S, [SLOW]), (OURS_IS_2S, [QUICK])),
    3: layer_cases(
        (OURS_IS_2S, [curve("cg", 0.9, 0.9, 0.05)]),
        (OURS_IS_2S, [curve("cg", 0, 0, 0)]),
    ),
    4: layer_cases(
        ([admm(0.009), update_row("sparsegpt", None, error=0.018)],),
        ([admm(0.009), update_row("sparsegpt", None, error=0.008)],),
    ),
    5: layer_cases(([admm(0.009)],), ([admm(0.02)],)),
    6: option_cases({"iterations": 50}, -0.01, -0.04, -0.025),
    7: layer_cases(
        ([admm(0.1)], rho_curves(EARLY, LATE, **THREE)),
        ([admm(0.1)], rho_curves(LATE, EARLY, **THREE)),
    ),
    8: option_cases({"precondition": False}, 0.04, 0.01, 0.025),
    9: layer_cases(
        ([admm(0.1)], rho_curves(EARLY, LATE, **THREE)),
        ([admm(0.1)], rho_curves(LATE, EARLY, **THREE)),
    ),
    10: perplexity_cases("admm1"),
    11: perplexity_cases("sparsegpt", "wanda"),
    12: {
        HOLDS: timed(117.0, 118.0, 119.0),
        FAILS: timed(
            126.5, 127.0, 127.5
        ),  # ln 1.27 is below 0.25: the limit is ln 1.25
        OPEN: timed(110.0, 120.0, 130.0),
        UNTESTED: timed(117.0, 118.0, 119.0, alone=False),
    },
    15: option_cases({"schedule": "released"}, 0.01, -0.04, -0.015),
    17: perplexity_cases("alps"),
    18: pipeline_cases(36.0, 45.0, 40.0, 350.0),
    19: pipeline_cases(64.0, 75.0, 69.6, 125.0, **TWO),
    20: {
        HOLDS: pipelines(40.0, 400.0) + SPARSEGPT,
        FAILS: pipelines(48.0, 400.0) + SPARSEGPT,
        OPEN: pipelines(44.0, 400.0) + SPARSEGPT,
        UNTESTED: pipelines(40.0, 400.0, count=2) + SPARSEGPT,
    },
    21: perplexity_cases("sparsegpt", method="admm1"),
    24: pipeline_cases(36.0, 45.0, 40.0, 350.0, **LOWER),
    25: option_cases({"finish": "exact"}, -0.01, -0.04, -0.025),
} | ANSWERS


@pytest.mark.parametrize("number", BY_NUMBER)
def test_records_can_give_each_answer_to_each_claim(number, monkeypatch):
    monkeypatch.setattr("reproduction.claim_draws.read_records", lambda _: [])
    for expected, records in CASES[number].items():
        verdict, rows = judged(number, records)
        assert verdict["verdict"] == expected, rows.T
        assert verdict["scale"]


@pytest.mark.parametrize("number", sorted(BY_NUMBER))
def test_a_column_counts_once(number):
    """Claim 18 named 70 % twice, and its p was multiplied by one column too many."""
    for runs in CASES[number].values():
        rows = judged(number, runs)[1]
        names = ["quantity", "of", "against", "side", "limit", "at", "control"]
        assert not rows[names].duplicated().any()


def test_every_claim_says_whether_it_is_the_papers():
    ours = [claim.number for claim in CLAIMS if claim.source == OURS]
    assert ours == [3, 17, 18, 19, 20, 21, 22, 23, 24, 25]


# ------------------------------------------------------------------ one rule


def test_a_mean_of_draws_and_its_p():
    """Student's t of 4.604 with four degrees of freedom is 1 %."""
    logs = 0.02 * (4.604 / 5**0.5 + np.array([-1, -1, 0, 1, 1]))  # a deviation of 0.02
    runs = against(0.0, ["admm1"], ["60 %"], **{"60 %": (0.0, np.exp(logs))})
    row = column(judged(10, runs)[1], "60 %")
    assert row["n"] == 5
    assert row["mean"] == pytest.approx(math.expm1(logs.mean()))
    assert row["half"] == pytest.approx(
        math.exp(logs.mean()) * T4 * 0.02 / 5**0.5, rel=1e-3
    )
    assert row["p"] == pytest.approx(0.01, rel=1e-3)


def test_holm_multiplies_by_how_many_are_left():
    found = holm(pd.Series({"a": 0.04, "b": 0.01, "c": 0.02, "d": 0.03}))
    # times 4, 3, 2 and 1 in the order of size, and none is below one before it
    assert found.to_dict() == pytest.approx(
        {"b": 0.04, "c": 0.06, "d": 0.06, "a": 0.06}
    )
    assert holm(pd.Series([0.9, 0.8])).max() == 1.0


def test_a_claim_that_only_the_correction_leaves_open():
    """Alone p = 3 %; beside a claim that is level with its limit it is 6 %."""
    # t of 3.26 with four degrees of freedom
    logs = 0.02 * (-3.26 / 5**0.5 + np.array([-1, -1, 0, 1, 1]))
    here = {at: (0.0, np.exp(logs)) for at in COLUMNS}
    runs = against(0.0, ["admm1"], **here)
    level = 20 * np.exp(logs.mean())
    for at in COLUMNS:
        runs += draws("alps", at, level, [1.0] * 5)
    ours = [BY_NUMBER[10]]
    assert judge_claims(runs, ours)[0]["verdict"].tolist() == [HOLDS]
    verdicts, _ = judge_claims(runs, [*ours, BY_NUMBER[17], BY_NUMBER[5]])
    first, second, count = verdicts.itertuples()
    assert (first.verdict, first.alone, second.verdict) == (OPEN, HOLDS, OPEN)
    assert first.corrected == pytest.approx(2 * first.p)
    assert (first.family, count.family) == (2, 0)  # a count is in no family


def test_one_wrong_column_must_be_surer_the_more_there_are(committed, tmp_path):
    """A column that is behind with p = 2 % refutes alone, and not as one of six."""
    logs = 0.02 * (3.75 / 5**0.5 + np.array([-1, -1, 0, 1, 1]))
    behind = {"70 %": (0.0, np.exp(logs))}
    runs = against(-0.1, ["admm1"], **behind)
    verdict, _ = judged(10, runs)
    assert verdict["verdict"] == OPEN
    said = rows_of(claims_markdown(runs, tmp_path))[10][4]
    assert "beyond the limit by its own ±, but not as one of 6" in said
    assert "lies within" not in said
    assert verdict["p"] == pytest.approx(6 * 0.02, rel=0.01)
    alone, _ = judged(10, against(-0.1, ["admm1"], ["70 %"], **behind))
    assert alone["verdict"] == FAILS  # whatever the columns that were not run would say


def test_a_column_decides_by_its_own_draws():
    """Five draws elsewhere lend nothing to a column with two, which is shown."""
    runs = against(-0.1, ["admm1"], **{"80 %": (0.5, FIVE[:2])})
    verdict, rows = judged(10, runs)
    assert (verdict["verdict"], verdict["points"]) == (UNTESTED, FAILS)
    assert verdict["columns"] == dict.fromkeys(COLUMNS, HOLDS) | {"80 %": UNTESTED}
    row = column(rows, "80 %")
    assert (row["n"], row["lacks"]) == (2, "3 samples")
    assert math.isnan(row["half"])
    assert math.isnan(row["p"])
    # what is most behind is what is shown of it
    assert (verdict["at"], verdict["n"]) == ("80 %", 2)
    # a column that the claim does not rest on takes nothing from it
    runs = against(-0.1, ["admm1"], **{"4:8": (0.5, FIVE[:2])})
    assert judged(10, runs)[0]["verdict"] == HOLDS
    assert judged(10, against(-0.1, ["admm1"], COLUMNS[:4]))[0]["verdict"] == HOLDS


@pytest.mark.parametrize(
    "change, points",
    [(-0.1, HOLDS), (0.1, FAILS), (-0.015, ""), (0.015, "")],
)
def test_a_single_draw_points_where_it_is_clear_of_rounding(change, points):
    one = against(0.0, ["admm1"], ["60 %"], **{"60 %": (change, [1.0])})
    assert judged(10, one)[0]["points"] == points


def test_draws_that_straddle_the_limit_point_nowhere():
    """Three columns have no runs, and the interval of the fourth holds the limit."""
    runs = against(0.0, ["admm1"], ["60 %"], **{"60 %": (-0.01, FIVE)})
    verdict, _ = judged(10, runs)
    assert (verdict["verdict"], verdict["points"]) == (UNTESTED, "")
    # of one draw of answers ± is of the questions alone
    few = answers({"sparsegpt": 53, "wanda": 50}, count=1)
    verdict, rows = judged(14, few)
    row = column(rows, "50 %", "seven")
    assert row["mean"] > row["half"] / 2
    assert verdict["points"] == ""


@pytest.mark.parametrize(
    "change",
    [
        {"platform": {"processor": "another"}},
        {"device": "cpu, 8 threads"},
        {"parameters": {"calibration_seed": 9}},
        {"parameters": {"window": 1024}},
    ],
)
def test_a_pair_is_of_one_draw_one_setting_and_one_processor(change):
    runs = against(-0.1, ["admm1"])
    (first,) = [run for run in runs if run["name"] == "admm1-60 %-0"]
    changed = {
        key: first[key] | value if key == "parameters" else value
        for key, value in change.items()
    }
    others = [run for run in runs if run is not first]
    _, rows = judged(10, [*others, first | changed])
    assert column(rows, "60 %")["n"] == 4
    assert column(judged(10, runs)[1], "60 %")["n"] == 5


def test_several_records_of_one_draw_count_once():
    runs = against(-0.1, ["admm1"])
    assert judged(10, runs + runs)[1].equals(judged(10, runs)[1])


def test_only_seconds_of_runs_that_were_timed_alone_decide():
    shared = [run | {"timed": False} for run in draws("admm-grad", "60 %", 20.0)]
    runs = timed(117.0, 118.0, 119.0)
    verdict, rows = judged(12, [*runs, *shared])
    assert column(rows, "60 %", "seconds")["mean"] == pytest.approx(0.18, abs=1e-4)
    assert verdict["verdict"] == HOLDS
    verdict, rows = judged(12, timed(117.0, 118.0, 119.0, alone=False))
    assert column(rows, "60 %", "seconds")["lacks"] == claims.ALONE
    assert column(rows, "60 %", "seconds")["n"] == 3  # they are shown
    assert verdict["points"] == ""  # and point nowhere, on whichever side they are
    slow = judged(12, timed(217.0, 218.0, 219.0, alone=False))[0]
    assert slow["points"] == "" and slow["lacks"] == claims.ALONE


def test_of_a_claim_that_holds_the_smallest_difference_is_shown(committed, tmp_path):
    """Not the one whose p is largest, which may be a large difference with a wide interval."""
    wide = {"80 %": (-0.9, FIVE**20), "50 %": (-0.05, FIVE**0.2)}
    runs = against(-0.2, ["admm1"], **wide)
    verdict, rows = judged(10, runs)
    assert verdict["verdict"] == HOLDS and verdict["at"] == "50 %"
    assert rows.loc[verdict["main"], "at"] == "50 %"
    assert verdict["p"] == rows["p"].max() == column(rows, "80 %")["p"]
    assert rows.loc[verdict["surest"], "at"] == "80 %"
    *_, number, remarks = rows_of(claims_markdown(runs, tmp_path))[10]
    below = "perplexity 5.0 ± 0.5 % below ADMM1's, at 50 % (5 samples)"
    assert number == f"{below}: the smallest of 6 differences"
    assert remarks == ASSUMED
    # two limits of one number, or one that is not 0, make no range
    page = claims_markdown(CASES[15][HOLDS], tmp_path)
    assert "smallest of" not in rows_of(page)[15][3]


def test_of_a_claim_that_does_not_hold_each_column_says_what_it_does(
    committed, tmp_path
):
    runs = against(-0.1, ["admm1"], **{"70 %": (0.15, FIVE), "2:4": (0.0, FIVE)})
    _, _, verdict, _, remarks = rows_of(claims_markdown(runs, tmp_path))[10]
    assert verdict == "**does not hold**"
    sides = "yes at 50, 60, 80 % and 4:8, no at 70 %, undecided at 2:4"
    assert remarks == f"{sides};<br>{ASSUMED}"


def test_columns_that_other_windows_would_leave_open_stand_apart():
    columns = {"50 %": HOLDS, "60 %": FAILS, "70 %": UNTESTED, "2:4": FAILS}
    row = argparse.Namespace(columns=columns, near=["50 %", "2:4"])
    said = "no at 60 %; open at 50 % and 2:4 once ± over windows counts, too"
    assert claim_words._sides(row) == said


def test_an_undecided_claim_shows_all_numbers_that_it_rests_on(committed):
    """Which of two rivals is too close is no more than half of the answer."""
    runs = answers({"admm-grad": 70, "sparsegpt": 50, "wanda": [60, 70, 75]})
    measured = measured_of(13, runs).replace("\u00a0", " ")
    assert re.search(
        r"7 tasks 0\.200 ± \S+ above SparseGPT's and \S+ ± \S+ above Wanda", measured
    )
    # the two sides of one interval are one number
    assert measured_of(15, CASES[15][OPEN]).count("schedule=released") == 1


# ------------------------------------------------------------------ answers


def test_a_number_says_its_side_in_words():
    def measured_with(factors):
        runs = draws("admm-grad", "60 %", 20.0, factors)
        return measured_of(10, runs + draws("admm1", "60 %", 20.0, [1.0, 1.0, 1.0]))

    assert measured_with([0.9, 0.9, 0.9]).startswith(
        "perplexity 10.0 ± 0.0 % below ADMM1's"
    )
    assert measured_with([0.9, 1.0, 1 / 0.9]).startswith(
        "perplexity level with ADMM1's (0.0 ± "
    )
    same = option_cases({"iterations": 50}, 0.0, 0.1, 0.0)[OPEN]
    assert measured_of(6, same).startswith(
        "perplexity unchanged (0.0 ± 2.5 %) with `iterations=50`"
    )
    rises = option_cases({"iterations": 50}, 0.0, 0.1, 0.0)[FAILS]
    assert "higher with `iterations=50`" in measured_of(6, rises)
    # an interval on both sides, given by its ends, keeps its signs
    wide = measured_with([0.05, 1.0, 8.0])
    assert wide.startswith("perplexity −26.3 % (−99.9 % to +41573.0 %) against ADMM1")
    # the machine is named last
    slow = timed(117.0, 118.0, 119.0, alone=False)
    assert "above SparseGPT's (on a shared machine), at 60 %" in measured_of(12, slow)


def test_zero_shot_runs_at_two_targets_all_count():
    """The claim was decided by the first target in the order of their names."""
    right = {"admm-grad": 70, "sparsegpt": 50, "wanda": 50}
    runs = answers(right)
    assert judged(13, runs)[0]["verdict"] == HOLDS
    behind = answers(right | {"admm-grad": 30}, target="60 %")
    verdict, _ = judged(13, runs + behind)
    assert (verdict["verdict"], verdict["at"]) == (FAILS, "60 %")


def test_questions_that_draws_share_add_their_luck():
    """Of 100 questions 20 more: a deviation of 40, so an error of 4; of two alike tasks 2.84."""
    right = {"sparsegpt": 70, "wanda": 50}
    luck = 2 * 0.0402 / 2**0.5
    _, rows = judged(14, answers(right))
    assert column(rows, "50 %", "answers")["half"] == pytest.approx(luck, rel=1e-3)
    _, rows = judged(14, answers(right, count=1))  # there is nothing else
    assert column(rows, "50 %", "answers")["half"] == pytest.approx(luck, rel=1e-3)
    # Student's quantile of three draws is 4.303
    sway = {"sparsegpt": [69, 70, 71], "wanda": 50}
    half = 4.303 * 0.01 / 3**0.5
    _, rows = judged(14, answers(sway))
    both = column(rows, "50 %", "answers")["half"]
    assert both == pytest.approx(math.hypot(half, luck), rel=1e-2)
    # of other questions it is in their spread
    _, rows = judged(14, answers(sway, other_questions=True))
    assert column(rows, "50 %", "answers")["half"] == pytest.approx(half, rel=1e-3)


def test_a_pair_answers_the_same_questions():
    runs = answers({"sparsegpt": 70, "wanda": 50})
    runs[0]["series"]["zero_shot"]["rte"]["items"] = list(range(1, 101))
    _, rows = judged(14, runs)
    assert column(rows, "50 %", "answers")["n"] == 2


def test_the_recipe_is_compared_with_the_answers_of_the_plan_full(monkeypatch):
    committed = answers({"admm-grad": 50})
    monkeypatch.setattr("reproduction.claim_draws.read_records", lambda _: committed)
    recipe = answers({"admm-grad+": 80})
    verdict, _ = judged(22, recipe)
    assert (verdict["verdict"], verdict["mean"]) == (HOLDS, pytest.approx(0.3))
    # with pipelines beside it, whose draws are named otherwise
    assert judged(22, recipe + CASES[18][OPEN])[0]["verdict"] == HOLDS
    # those of `full` do not become claims of the page
    assert judged(13, recipe)[0]["n"] == 0


def test_the_papers_seven_tasks_decide_and_all_are_shown():
    """Of RTE and LAMBADA the first alone is one of the paper's."""
    runs = answers({"admm-grad": 70, "sparsegpt": 50, "wanda": 50})
    for run in runs:
        if run["parameters"]["method"] == "admm-grad":
            run["series"]["zero_shot"]["lambada_openai"]["acc"] = [0] * 100
    verdict, rows = judged(13, runs)
    assert column(rows, "50 %", "seven")["mean"] == pytest.approx(0.2)
    assert column(rows, "50 %", "answers")["mean"] == pytest.approx((0.2 - 0.5) / 2)
    assert verdict["verdict"] == HOLDS


def test_only_questions_that_draws_share_add_their_luck():
    """Draws with other questions of one task, and the same of the other."""
    sway = {"sparsegpt": [69, 70, 71], "wanda": 50}
    runs = answers(sway, other_questions=True)
    for run in runs:
        run["series"]["zero_shot"]["lambada_openai"]["items"] = list(range(100))
    _, rows = judged(14, runs)
    half, one = 4.303 * 0.01 / 3**0.5, 2 * 0.0402 / 2
    found = column(rows, "50 %", "answers")["half"]
    assert found == pytest.approx(math.hypot(half, one), rel=1e-2)
    # one question that two draws share is enough: that is on the safe side
    runs = answers(sway, other_questions=True)
    for run in runs[1::3]:
        run["series"]["zero_shot"]["rte"]["items"][0] = 0
    assert column(judged(14, runs)[1], "50 %", "answers")["half"] > 1.3 * half


def test_draws_of_other_parts_of_the_questions_are_runs_of_one_row():
    """`task_part` says which part of each task is asked: no other setting, and no variant."""
    runs = answers({"sparsegpt": [69, 70, 71], "wanda": 50}, other_questions=True)
    for run in runs:
        run["parameters"]["task_part"] = run["parameters"]["calibration_seed"]
    assert column(judged(14, runs)[1], "50 %", "answers")["n"] == 3


# ------------------------------------------------------------------ windows and earlier draws


def remarks_of(number, records):
    """What stands beside the number of a claim."""
    verdicts, rows = judge_claims(records, [BY_NUMBER[number]])
    return "; ".join(claim_words.remarks(next(verdicts.itertuples()), rows))


def measured_of(number, records):
    """The number of a claim."""
    verdicts, rows = judge_claims(records, [BY_NUMBER[number]])
    return claim_words.main_number(next(verdicts.itertuples()), rows)


def how_tested(number, records, folder=Path("tables")):
    """How a claim was tested, in words."""
    page = details_markdown(records, folder).replace("\u00a0", " ")
    return page.partition(f'<a id="tested-{number}">')[2].partition('<a id="tested-')[0]


def test_windows_have_an_interval_of_their_own(committed):
    """Losses of four windows that differ by 0.1, 0.2, 0.3 and 0.4 in each of three draws."""
    runs = []
    for seed in range(3):
        for method, step in ("admm-grad", -0.1), ("admm1", 0.0):
            losses = [3.0 + step * window for window in (1, 2, 3, 4)]
            run = pruned(method, "60 %", math.exp(np.mean(losses)), seed)
            runs.append(run | {"series": {"window_losses": {"perplexity": losses}}})
    row = column(judged(10, runs)[1], "60 %")
    # Student's quantile with three degrees of freedom is 3.182, the deviation 0.129
    half = math.exp(-0.25) * 3.182 * 0.12910 / 4**0.5
    assert row["windows"] == 4
    assert row["window_half"] == pytest.approx(half, rel=1e-3)
    assert row["half"] == pytest.approx(0, abs=1e-9)  # the draws are alike
    over = f"| – the same, ± over 4 windows, of 3 samples | – | ± {100 * half:.1f} % |"
    assert over in how_tested(10, runs)
    runs[0]["series"] = (
        None  # of one draw a record without them: the other two have them
    )
    assert column(judged(10, runs)[1], "60 %")["window_half"] == pytest.approx(
        half, rel=1e-3
    )
    for run in runs:
        run["series"] = None
    assert column(judged(10, runs)[1], "60 %")["windows"] == 0
    assert "– the same" not in how_tested(10, runs)


def test_what_only_the_shared_windows_decide_is_said_so():
    """Draws that are all alike, level in the mean over windows and 10 or 20 % apart in each."""
    levels = {"": [3.0] * 4, "more": [3.1, 3.2, 2.9, 2.8]}
    runs = []
    for seed, (name, losses) in itertools.product(range(3), levels.items()):
        options = {"iterations": 50} if name else {}
        run = pruned("admm-grad", "60 %", math.exp(3.0), seed, options=options)
        runs.append(run | {"series": {"window_losses": {"perplexity": losses}}})
    verdicts, rows = judge_claims(runs, [BY_NUMBER[6]])
    (row,) = verdicts.itertuples()
    assert (row.verdict, row.near, row.windows_only) == (HOLDS, ["60 %"], True)
    words = claim_words.verdict_words(row, rows)
    assert words == "**holds**, for these windows only"
    words = claim_words.verdict_words(row, rows, [6])
    assert words == "**holds**, only just and for these windows only"
    assert remarks_of(6, runs) == "other evaluation windows might change the verdict"
    # a kind of its own, and no other
    counted = count_sentence(verdicts, [6])
    assert counted.endswith("1 holds (6, only just and for these windows only).")
    assert count_sentence(verdicts).endswith("1 holds (6, for these windows only).")
    for run in runs:
        run["series"]["window_losses"]["perplexity"] = [3.0] * 4
    (row,) = judge_claims(runs, [BY_NUMBER[6]])[0].itertuples()
    assert (row.near, row.windows_only) == ([], False)
    assert remarks_of(6, runs) == ""


@pytest.mark.parametrize(
    ("verdict", "columns", "near", "rests"),
    [
        (HOLDS, {"50 %": HOLDS, "60 %": HOLDS}, ["60 %"], True),
        (HOLDS, {"50 %": HOLDS}, [], False),
        # one column that no other windows would turn is enough
        (FAILS, {"50 %": FAILS, "60 %": FAILS}, ["60 %"], False),
        (FAILS, {"50 %": HOLDS, "60 %": FAILS}, ["60 %"], True),
        (FAILS, {}, [], False),  # of layers
        (OPEN, {"50 %": OPEN}, [], False),
    ],
)
def test_which_verdicts_other_windows_may_turn(verdict, columns, near, rests):
    assert claims._rests_on(verdict, columns, near) is rests


def test_draws_of_earlier_releases_are_shown_with_todays(committed, tmp_path):
    runs = [
        pruned("admm-grad", "60 %", value, seed, sequences=32, options=options)
        for seed, value in ((0, 19.0), (9, 19.5))
        for options, value in (({"iterations": 50}, value), ({}, 20.0))
    ]
    verdict, rows = judged(6, runs)
    row = column(rows, "60 %")
    (before,) = row["earlier"]
    # five of 0.8.0, of which draw 0 counts as measured today, and 9 is new
    logs = [-0.00242504, 0.0015392, -0.0226539, 0.00044621]
    assert (before.n, before.again) == (5, 1)
    said = "(0.8.0: 5 samples, 1 of them measured again since)"
    assert said in details_markdown(runs, tmp_path)
    today = [math.log(19 / 20), math.log(19.5 / 20)]
    assert row["together"].n == 6
    assert row["together"].mean == pytest.approx(math.expm1(np.mean(logs + today)))
    assert verdict["verdict"] == UNTESTED  # they decide nothing
    # another size of the calibration text is another quantity
    other = [run | {"parameters": run["parameters"] | {"sequences": 8}} for run in runs]
    assert column(judged(6, other)[1], "60 %")["earlier"] == ()


def test_earlier_draws_are_those_of_the_commits_that_they_name():
    if subprocess.run(
        ["git", "cat-file", "-e", earlier.SOURCES[0][0][0]], cwd=root(), check=False
    ).returncode:
        pytest.skip("this clone has no such history")
    assert list(earlier.extracted()) == earlier.earlier_draws().to_dict("records")


# ------------------------------------------------------------------ layers

UNTUNED = {
    # iterations to ADMM's error at three learning rates, and what is known of them
    (60, 50, 60): HOLDS,
    (47, 50, 60): HOLDS,  # flat
    (40, 50, 60): OPEN,
    (60, 50, 40): OPEN,
    (9, 12, 60): FAILS,  # a better rate cannot make it slower
}


@pytest.mark.parametrize("costs", UNTUNED)
def test_a_rival_whose_best_rate_was_not_found_has_not_been_beaten(costs):
    curves = [
        curve("adam", 0.05, learning_rate=rate, iterations=[cost], seconds=[cost])
        for rate, cost in enumerate(costs, 1)
    ]
    verdict, rows = judged(1, layers(8, [admm(0.05)], curves))
    assert verdict["verdict"] == UNTUNED[costs]
    assert rows.iloc[0]["unknown"] == (8 if verdict["verdict"] == OPEN else 0)


def test_a_rival_that_was_stopped_early_or_diverged_has_not_been_beaten():
    never = curve("sgd", 0.9, 0.9, 0.9)  # 100 iterations, 10 s
    verdict, rows = judged(2, layers(8, [admm(0.05, seconds=9.0)], [never]))
    assert verdict["verdict"] == HOLDS
    assert rows.iloc[0]["median"] == math.inf
    gone = curve("adam") | {"iterations": [], "seconds": []}  # infinite at once
    for ours, rival in ((11.0, never), (1.0, gone)):
        assert judged(2, layers(8, [admm(0.05, seconds=ours)], [rival]))[0]["n"] == 0


def test_between_two_points_the_excess_falls_geometrically():
    """From 0.9 at 10 to 0.005 at 30: 10 + 20 ln(0.9 / 0.01) / ln(0.9 / 0.005) = 27.3."""
    curves = rho_curves((0.9, 0.005, 0.001), EARLY, **THREE)
    _, rows = judged(9, layers(8, [admm(0.1)], curves))
    assert rows.iloc[0]["median"] == pytest.approx(2.73, rel=1e-2)
    # where no ρ gets there, ρ = 1 does not fit either
    never = rho_curves((0.9, 0.5, 0.3), (0.9, 0.5, 0.3), **THREE)
    assert judged(9, layers(8, [admm(0.1)], never))[0]["verdict"] == FAILS


def test_how_many_problems_decide():
    good, bad = CASES[5][HOLDS][0], CASES[5][FAILS][-1]
    for goods, bads, expected in (
        (9, 1, HOLDS),
        (8, 2, OPEN),
        (6, 4, OPEN),
        (5, 5, FAILS),
    ):
        runs = layers(goods, good["series"]["update"])
        runs += layers(bads, bad["series"]["update"], first=goods)
        assert judged(5, runs)[0]["verdict"] == expected


def test_one_record_may_study_many_layers():
    rows, curves = [], []
    for layer in "abcdefgh":
        rows.append(admm(0.05) | {"layer": layer})
        curves.append(SLOW | {"layer": layer})
    many = with_series("02", {"layer": "a", "block": 1}, update=rows, curves=curves)
    assert judged(1, [many])[0]["verdict"] == HOLDS


# ------------------------------------------------------------------ the page


@pytest.fixture
def committed(monkeypatch):
    """Committed records by plan, none unless a test gives them."""
    plans = dict.fromkeys(("full", "beyond", "second"), ())
    monkeypatch.setattr(
        claims_tested, "read_records", lambda path: plans[path.parent.name]
    )
    return plans


def rows_of(page):
    """The cells of each claim in the table of a page, by number."""
    page = page.replace("\u00a0", " ")
    cells = [line.strip("| ").split(" | ") for line in page.splitlines()]
    links = [
        (re.match(r'<a id="claim-(\d+)"></a>\[\1\]\(.*#tested-\1\)$', row[0]), row)
        for row in cells
    ]
    return {int(found[1]): row for found, row in links if found}


def sureness_of(page):
    """The cells after the number of each claim in the table of p and of what overturns it."""
    table = page.partition("overturned by")[2].partition("\n\n")[0]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines()[2:]]
    return {int(number): cells for number, *cells in rows if number.isdecimal()}


def test_a_page_shows_what_its_records_say(committed, tmp_path):
    runs = against(-0.1, ["admm1", "sparsegpt"], ["60 %", "2:4"])
    runs += CASES[5][HOLDS]
    tables = tmp_path / "tables"
    page = claims_markdown(runs, tables, tmp_path)
    rows = rows_of(page)
    # the paper's claims, then our own
    assert list(rows) == [11, 10, 12, 5, 21]  # the model, then layers
    assert [row[2] for row in rows.values()] == [
        "**no runs**",  # Wanda was not run
        "**no runs** at 50, 70, 80 %; holds at 60 % and 2:4",
        # seconds of runs that shared the machine
        "**not timed alone**",
        "**holds**, with a reservation",
        "**no runs** at 50, 70, 80 %; undecided at 60 % and 2:4",  # level
    ]
    assert "needs runs at 50, 70, 80 %" in rows[10][4]
    assert rows[12][4].startswith(BY_NUMBER[12].remark)
    assert "suggests yes: perplexity 10.0 ± 2.2 % below ADMM1's" in rows[10][3]
    assert "(5 samples)" in rows[10][3]
    for number, cells in rows.items():
        assert cells[1] == BY_NUMBER[number].sentence.rstrip(".")
    assert "their limits are ours, the direction of 10 too." in page
    assert "](tables/claims_tested.md#tested-11)" in page
    short, page = page, details_markdown(runs, tables)
    assert "Source: tables of perplexity; direction assumed." in page
    assert "Table: [perplexity](perplexity.md)." in page
    # what ± is made of, and the command that makes a pair of it again
    number = "−10.0 ± 2.2 % against ADMM1 at 60 % is the mean of these samples: "
    said = page.replace("\u00a0", " ").partition(number)[2]
    values = said.split(" %")[:5]
    changes = [float(each.strip(", ").replace("−", "-")) for each in values]
    assert np.mean(np.log1p(np.array(changes) / 100)) == pytest.approx(
        math.log(0.9), abs=1e-3
    )
    assert "make reproduce PLAN=" in page and "ONLY='04*--admm-grad-60 %-0 " in page
    for number in rows:
        assert f'<a id="tested-{number}"></a>**{number}. ' in page
    assert short.splitlines()[0] == (
        "**Of the paper's 4 claims, as we read them, 1 holds, 2 have too few runs, 1 lacks runs "
        "that were timed alone and none is refuted. Of 1 that we added 1 has too few runs and none "
        "is refuted.**"
    )
    assert [
        line for line in short.splitlines() if line.startswith(("| the p", "| our"))
    ] == [
        "| the paper's 3 on the whole model | – | – | 3 (10, 11 and 12) |",
        "| the paper's 1 on single layers | 1 (5) | – | – |",
        "| our 1 | – | – | 1 (21) |",
    ]
    counted = (
        "Of the paper's 4 claims 1 holds (5, with a reservation); 2 have too few runs (10 and 11); "
        "1 lacks runs that were timed alone (12). Of 1 that we added 1 has too few runs (21)."
    )
    assert count_sentence(judge_claims(runs)[0]) == counted
    table = short.index("| # | claim |")
    assert short.index("*toy*") < short.index(claims_page.LEGEND) < table


def test_no_number_of_a_claim_is_missing_without_a_word(committed, tmp_path):
    shown = claims_markdown(CASES[5][HOLDS], tmp_path)
    _, _, rules = details_markdown(CASES[5][HOLDS], tmp_path).partition(
        "is decided: seven"
    )
    notes = re.findall(r"Claims? ([\d, and]+) ha", shown)
    listed = {int(word) for word in re.findall(r"\b\d+\b", " ".join(notes))}
    numbers = set(rows_of(shown)) | listed
    assert set(range(1, max(BY_NUMBER) + 1)) - {16} == numbers
    assert 16 not in BY_NUMBER and "no claim 16" in shown
    assert len(claims_tested.RULES) == 7
    for number, rule in enumerate(claims_tested.RULES, 1):
        assert f'\n{number}. <a id="rule-{number}"></a>{rule}\n' in rules


def test_a_page_without_a_claim_says_so(committed, tmp_path):
    page = claims_markdown(draws("dense", "60 %", 20.0), tmp_path)
    assert page.startswith("No claim has runs here") and "|" not in page
    assert details_markdown(draws("dense", "60 %", 20.0), tmp_path) == ""


def test_a_claim_has_a_table_of_all_its_numbers(committed, tmp_path):
    runs = against(-0.1, ["admm1"], **{"80 %": (0.5, FIVE[:2])}) + CASES[5][HOLDS]
    page = details_markdown(runs, tmp_path)
    *_, layers, models = (part.split("\n") for part in page.split("\n|  | "))
    assert layers[0] == "median | worst | how many |"
    assert layers[2].endswith("| 0.9 % | 0.9 % | within 1 % on 10 of 10 problems |")
    assert models[0] == "50 % | 60 % | 70 % | 80 % | 2:4 | 4:8 |"
    name, *cells, _ = models[2].strip("| ").split(" | ")
    assert name == "perplexity against ADMM1: below 0"
    clear = "−10.0 ± 2.2 % (5) ✓"
    assert cells == [*[clear] * 3, "+47.0 % (2)", clear]


def test_a_row_says_that_only_the_correction_leaves_a_claim_open(committed, tmp_path):
    runs = timed(110.0, 115.0, 118.0) + CASES[14][OPEN]
    verdicts, evidence = judge_claims(runs)
    row = next(row for row in verdicts.itertuples() if row.number == 12)
    assert (row.verdict, row.alone) == (OPEN, HOLDS)
    page = claims_markdown(runs, tmp_path)
    _, _, verdict, _, remarks = rows_of(page)[12]
    assert verdict == "**undecided after correction**; by its own ± it holds"
    needed = claims.draws_needed(row, evidence[evidence["number"] == 12])
    assert f"about {needed} samples would decide" in remarks
    both = f"{row.corrected:.2g}"  # no other page has claims
    of = "+14.3 ± 10.1 % against SparseGPT at 60 %"
    page = details_markdown(runs, tmp_path)
    assert sureness_of(page)[12][:4] == [f"{row.p:.2g}", of, both, both]


@pytest.mark.parametrize("change", [-0.005, -0.04])
def test_so_many_draws_of_the_same_mean_and_spread_decide(change):
    """Of claim 6, more than 2 % lower or not, with draws that have a deviation of 1.5 %."""

    def verdict(n):
        z = np.arange(n) - (n - 1) / 2
        logs = math.log1p(change) + 0.015 * z / z.std(ddof=1)
        options = {"iterations": 50}
        runs = draws("admm-grad", "60 %", 20.0, np.exp(logs), options=options)
        runs += draws("admm-grad", "60 %", 20.0, [1.0] * n)
        return judged(6, runs)

    row, rows = verdict(3)
    assert row["verdict"] == OPEN
    needed = claims.draws_needed(row, rows)
    assert 3 < needed < 30
    assert verdict(needed - 1)[0]["verdict"] == OPEN
    assert verdict(needed)[0]["verdict"] == (HOLDS if change > -0.02 else FAILS)


@pytest.mark.parametrize(
    "number, words",
    [
        (1, "of the paper's 1 claims 1 is undecided (1)"),
        (2, "of the paper's 2 claims 2 hold (1 and 2)"),
        (3, "of the paper's 3 claims 1 holds (2); 2 do not hold (1 and 3)"),
    ],
)
def test_it_counts_the_verdicts(number, words):
    kinds = {1: [OPEN], 2: [HOLDS] * 2, 3: [FAILS, HOLDS, FAILS]}[number]
    verdicts = pd.DataFrame({"verdict": kinds, "source": "figure", "n": 1})
    verdicts = verdicts.assign(lacks="", remark="", number=range(1, number + 1))
    verdicts["windows_only"] = False
    assert count_sentence(verdicts) == f"O{words[1:]}."
    both = pd.concat([verdicts, verdicts.assign(source=OURS), verdicts.assign(n=0)])
    added = words.replace(f"the paper's {number} claims", f"{number} that we added")
    assert count_sentence(both) == f"O{words[1:]}. O{added[1:]}."


def test_it_names_the_claims_that_hold_only_just():
    verdicts = pd.DataFrame({"verdict": [HOLDS] * 4, "source": "figure", "n": 1})
    verdicts = verdicts.assign(
        lacks="", number=range(1, 5), remark=["", "", "ours", ""]
    )
    verdicts["windows_only"] = [False, False, False, True]
    said = (
        "4 hold: 1 plainly (1), 1 with a reservation (3), 1 only just (2) and 1 for these windows "
        "only (4)."
    )
    assert count_sentence(verdicts, [2]) == f"Of the paper's 4 claims {said}"


def test_runs_that_decide_nothing_have_no_verdict_beside_their_number(
    committed, tmp_path
):
    committed["full"] = against(-0.1, ["admm1"])
    one = against(0.3, ["admm1"], ["60 %"], **{"60 %": (0.3, [1.0])})
    page = claims_markdown(one, tmp_path)
    row = rows_of(page)[10]
    assert row[2:5:2] == ["no", "**holds**"]
    assert row[3].startswith("perplexity 30.0 % above ADMM1's")
    assert row[3].endswith("; only 60 % was run here")
    assert row[5].startswith("perplexity 10.0 ± 2.2 % below ADMM1's")
    assert row[5].endswith("point the other way")
    assert "too few to decide" in page.splitlines()[0]
    # of another column than the one that speaks against it there
    committed["full"] = against(-0.1, ["admm1"], **{"80 %": (0.5, FIVE[:2])})
    row = rows_of(claims_markdown(against(-0.1, ["admm1"], ["60 %"]), tmp_path))[10]
    assert row[2] == "yes"
    assert row[4].startswith("**too few runs** at 80 %; holds at 50, 60, 70 %")
    assert row[5].startswith("suggests no: ")
    assert "the other way" not in row[5]


def test_a_page_of_our_own_claims_does_not_list_what_the_paper_says(
    committed, tmp_path
):
    runs = CASES[18][HOLDS]
    for run in runs:
        run["parameters"]["model"] = "embedded"
    assert "no run here tests" not in claims_markdown(runs, tmp_path)


@pytest.mark.parametrize("count, half", [(3, 4.97), (2, math.nan)])
def test_a_method_of_ones_own_is_paired_with_rivals(count, half, monkeypatch):
    """Changes of −10 % and logarithms with a deviation of 2 %, times 4.303 / √3."""
    folders = {
        "results": draws("mine", "60 %", 18.0, np.exp([-0.02, 0.0, 0.02][:count])),
        "reference": draws("alps", "60 %", 20.0, [1.0] * 3),
    }
    monkeypatch.setattr(
        "reproduction.claim_draws.read_records",
        lambda folder: folders[
            "reference" if "reference" in folder.parts else "results"
        ],
    )
    (row,) = claim_draws.against("mine", ["alps"]).itertuples()
    assert row.pairs == count
    assert row[2] == pytest.approx(0.9 * half, nan_ok=True, abs=0.01)


def test_a_claim_says_where_the_runs_of_a_second_model_point(committed, tmp_path):
    ours = against(-0.1, ["admm1"])
    for change, said in ((-0.1, "suggests yes"), (0.1, "suggests no")):
        special = {"60 %": (change, [1.0])}
        theirs = against(change, ["admm1"], ["60 %"], **special)
        for run in theirs:
            run["parameters"]["model"] = "embedded-gemma"
        committed["second"] = theirs
        assert f"On Gemma-3-270M: {said}" in details_markdown(ours, tmp_path)
        committed["second"] = ours  # the same model says nothing new
        assert "On SmolLM2" not in details_markdown(ours, tmp_path)


def test_a_page_says_what_a_family_of_all_pages_would_change(committed, tmp_path):
    """A claim with p = 3 % alone; with that of the other page it is 6 %."""
    logs = 0.02 * (-3.26 / 5**0.5 + np.array([-1, -1, 0, 1, 1]))
    runs = against(0.0, ["admm1"], **{at: (0.0, np.exp(logs)) for at in COLUMNS})
    assert "no verdict changes" in details_markdown(runs, tmp_path)
    committed["beyond"] = CASES[18][OPEN]
    page = details_markdown(runs, tmp_path)
    assert "for the 2 of the pages" in page
    assert "claim 10 would be undecided" in page
    row = rows_of(claims_markdown(runs, tmp_path))[10]
    assert row[2] == "**holds**, only just"
    correction = "undecided if p is corrected for the 2 interval claims of all"
    assert row[4].startswith(f"{ASSUMED};<br>{correction}")


def test_a_line_names_its_source_and_what_overturns_it(committed, tmp_path):
    runs = against(-0.1, ["sparsegpt", "wanda"]) + CASES[5][HOLDS]
    runs += draws("admm1", "70 %", 21.0)  # above SparseGPT's 20
    page = details_markdown(runs, tmp_path)
    assert "Source: abstract (“state of the art”), tables of perplexity." in page
    overturned = {number: cells[-1] for number, cells in sureness_of(page).items()}
    assert "(ADMM1) in its place: +5.0" in overturned[11]
    assert overturned[11].endswith("at 70 % (5 samples)")
    assert "U not updated" in overturned[5]
    # a control that does not overturn the claim is said to be none
    low = [run for run in runs if run["parameters"].get("method") != "admm1"]
    low += draws("admm1", "70 %", 19.0, [1.0] * 5)
    assert "hold all the same" in sureness_of(details_markdown(low, tmp_path))[11][-1]


def test_what_a_reader_of_a_verdict_should_know_stands_beside_it(committed, tmp_path):
    runs = CASES[7][HOLDS]
    page = claims_markdown(runs, tmp_path)
    assert rows_of(page)[7][4].startswith("reworded")
    assert "| the paper's 3 on single layers | 2 (7 and 9) | 1 (5) |" in page
    remarked = [number for number, claim in BY_NUMBER.items() if claim.remark]
    assert remarked == [4, 5, 7, 9, 11, 12, 19]
    assert rows_of(page)[7][2] == "**holds**, with a reservation"


def test_a_change_does_not_reach_below_all_of_it():
    """ln of 0.019 ± 0.035 / 0.019 is −3.963 ± 1.842: factors of 0.0030 and 0.1199."""
    show = claims.QUANTITIES["perplexity"].show
    assert show(-0.981, 0.035) == "−98.1 % (−99.7 % to −88.0 %)"
    assert show(-0.45, 0.035) == "−45.0 ± 3.5 %"
    assert show(-0.0004, 0.0) == "0.0 ± 0.0 %"


def test_what_no_run_tests_stands_on_the_page(committed, tmp_path):
    page = claims_markdown(against(-0.1, ["admm1"], COLUMNS[:5]), tmp_path)
    lists = page.split("no run here tests**; it would take ")[1:]
    gpu, runs = lists
    assert gpu.startswith(
        "the plan `paper` (`make reproduce PLAN=paper`) and a large GPU:"
    )
    for words in (
        "“a wide range of LLMs”",
        "LLaMA-7B",
        "of 2,048 tokens of Wiki",
        "all questions",
    ):
        (line,) = (line for line in gpu.splitlines() if words in line)
        assert line.startswith("- ")
    assert "- The pattern 4:8 " in runs and "- The pattern 4:8 " not in gpu
    # once it has draws enough it is a column as others
    page = claims_markdown(against(-0.1, ["admm1"]), tmp_path)
    assert "The pattern 4:8" not in page


def test_the_old_margin_is_beside_the_new_one(committed, tmp_path):
    """A change of −1.5 ± 0.2 % is no more than 2 %, and more than 1 %."""
    runs = option_cases({"iterations": 50}, -0.015, 0, 0)[HOLDS]
    (line,) = (
        row.strip("| ").split(" | ")
        for row in details_markdown(runs, tmp_path)
        .partition("The margin")[2]
        .splitlines()
        if row.startswith("| 6 |")
    )
    assert line[2:4] == [HOLDS, FAILS]


def test_samples_of_earlier_releases_say_the_same_or_otherwise(committed, tmp_path):
    """Those of claim 6: draws 0 to 4, of which one says that 50 iterations gain 2.2 %."""

    def said(seeds):
        runs = [
            pruned("admm-grad", "60 %", value, seed, sequences=32, options=options)
            for seed, factor in zip(seeds, FIVE, strict=True)
            for options, value in (({"iterations": 50}, 20 * factor**0.1), ({}, 20.0))
        ]
        _, _, text = details_markdown(runs, tmp_path).partition(
            "earlier releases added to"
        )
        return text.partition("\n## ")[0].replace("\u00a0", " ")

    # all measured again
    assert "the verdicts on claim 6 are the same." in said(range(5))
    other = "are others: of claim 6 −0.4 ± 0.6 % (10 samples): holds, undecided."
    assert other in said(range(5, 10))


def test_numbers_that_decide_stand_before_a_control_and_what_is_only_shown():
    page = (reference_dir("full") / "tables" / "claims_tested.md").read_text("utf-8")
    order = [f"*{title}:*" for title in (claims_tested.CONTROL, claims_tested.SHOWN)]
    tables = re.findall(r"(?m)(?:^\|.*\n)+", page)
    found = [[each for each in order if each in table] for table in tables]
    assert order[:1] in found and order[1:] in found
    for table in tables:
        first = table.splitlines()[2]
        assert not any(
            each in first for each in order
        )  # a table begins with what decides
        places = [table.index(each) for each in order if each in table]
        assert places == sorted(places)
