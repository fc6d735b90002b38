"""Claims: hand-written records on both sides of every test, so that a verdict can be foreseen."""

import math
import re

import pytest
from handmade import check_claim, pruned, scored, update_row, with_series
from helpers.report.evidence import (
    FAILS,
    HOLDS,
    OPEN,
    UNTESTED,
    Claim,
    Evidence,
    Margin,
    decide,
    holm,
    p_value,
)

from helpers.report import claims, claims_markdown, model_claims
from helpers.report.claims import claim_verdicts

TARGETS = ("50 %", "60 %", "70 %", "80 %", "2:4", "4:8")


def test_one_rule_decides_on_margins_and_half_widths():
    nan = float("nan")
    for margins, expected in (
        ([], UNTESTED),
        ([(0.2, 0.1), (0.1, 0.0)], HOLDS),
        ([(0.0, 0.0)], OPEN),
        ([(0.2, 0.1), (0.1, 0.2)], OPEN),
        ([(0.2, 0.1), (-0.1, 0.2)], OPEN),
        ([(0.2, 0.1), (-0.2, 0.1)], FAILS),
        ([(0.2, nan)], OPEN),
        ([(nan, nan), (-0.2, 0.1)], FAILS),  # what is not run could not save it
    ):
        assert decide(margins) == expected


# ------------------------------------------------------------------ perplexity


def test_chances_of_margins_and_their_correction():
    # Student's t of 2.776 with four degrees of freedom is 5 %, of 4.604 it is 1 %
    one, five = Margin(4.604, 2.776, 4), Margin(2.776, 2.776, 4)
    behind = Margin(-4.604, 2.776, 4)
    for margins, expected in (
        ([one], 0.01),
        ([one, five], 0.05),  # to hold, all of them must be above zero
        ([one, five, behind], 0.03),  # to fail, one below suffices, of three
        (
            [one, Margin(1.0)],
            0.01,
        ),  # what is unknown, and what is a count, has no chance
        ([Margin(2.0, 1.0)], math.nan),
    ):
        assert p_value(margins) == pytest.approx(expected, rel=1e-3, nan_ok=True)
    # times 4, 3, 2 and 1 in the order of size, and none is below one before it
    found = holm({"a": 0.04, "b": 0.01, "c": 0.02, "d": 0.03, "e": math.nan})
    assert found == pytest.approx({"b": 0.04, "c": 0.06, "d": 0.06, "a": 0.06})


def test_a_claim_of_many_must_be_surer():
    """Alone, a chance of 3 % decides; beside a second claim of 40 % the limit is 2.5 %."""

    margins = [(0.3, 0.1, 4), (-0.117, 0.1, 4), (0.04, 0.1, 4), (0.2, 0.1)]
    many = [
        Claim(number, "", "", "", lambda _, at=at: Evidence([Margin(*at)], "so"))
        for number, at in enumerate(margins)
    ]
    sure, likely, unlikely, counted = claim_verdicts([], many)
    assert [sure.verdict, likely.verdict, unlikely.verdict] == [HOLDS, OPEN, OPEN]
    assert likely.numbers == "so; p = 0.063, by itself it does not hold"
    assert counted[1:3] == (HOLDS, "so")
    assert claim_verdicts([], many[1:2])[0].verdict == FAILS


DENSE = [pruned("dense", "0 %", 10.0)]


def table(method, value, *spread):
    """Runs at every target; at 60 % with five seeds, off by these factors."""
    runs = [pruned(method, target, value) for target in TARGETS if target != "60 %"]
    factors = enumerate(spread or (1, 1, 1, 1, 1))
    return runs + [
        pruned(method, "60 %", value * factor, seed) for seed, factor in factors
    ]


def without(records, **values):
    """The records that do not have these parameters."""
    return [r for r in records if not values.items() <= r["parameters"].items()]


# ln(20 / 22) = −0.095; over seeds a deviation of 0.02, so 2.776 · 0.02 / √5 = 0.0248 at 60 %, and
# √5 times that in a column of one seed
FACTORS = (0.98, 0.98, 1, 1.02, 1.02)
GRAD = table("admm-grad", 20.0, *FACTORS)
ONE_SHOT = table("admm1", 22.0)
ALL = DENSE + GRAD + ONE_SHOT
# ln(ppl / 10) at 80 % is (ln 20 + ln 22) / (ln 2 + ln 2.2) = 4.11 times that at 60 %
HARD = [pruned("admm-grad", "80 %", 200.0), pruned("admm1", "80 %", 220.0)]
MORE = [pruned("admm-grad", "80 %", 200 * f, i) for i, f in ((1, 0.99), (2, 1.01))]
MORE += [pruned("admm1", "80 %", 220.0, seed) for seed in (1, 2)]
BEHIND = [pruned("admm-grad", "2:4", 20.0), pruned("admm1", "2:4", 18.7)]


@pytest.mark.parametrize(
    "records, expected, words",
    [
        (
            ALL,
            HOLDS,
            # −0.095 at a deviation of 0.02: t = 4.77 with four degrees of freedom
            "60 % −9 ± 2 %, 70 % −9 %, 80 % −9 %, 2:4 −9 %, 4:8 −9 %; 5 seeds; p = 0.0089",
        ),
        (without(ALL, sparsity=0.8) + HARD, OPEN, "80 % −9 %"),
        # three draws have an interval of their own: 4.303 · 0.01 / √3 = 0.0248
        (
            without(ALL, sparsity=0.8) + HARD + MORE,
            HOLDS,
            "one draw at 50 %, 70 %, 2:4, 4:8: −9 ± 2 % against ADMM1; against ADMM1: 50 % −9 %, "
            "60 % −9 ± 2 %, 70 % −9 %, 80 % −9 ± 2 %",
        ),
        # copies of seeds are no seeds more
        (ALL + ALL, HOLDS, "at 60 %, one draw elsewhere: −9 ± 2 % against ADMM1;"),
        (
            [*without(ALL, sparsity=0.7), *table("admm1", 15.0)[1:2], GRAD[1]],
            FAILS,
            "perplexity at 70 %, one draw: +33 % against ADMM1; against",
        ),
        # within the noise
        (DENSE + GRAD + table("admm1", 20.2), OPEN, "50 % −1 %"),
        # behind by 1.3 times its half in one of six columns, of which one is by chance in eleven
        (without(ALL, pattern="2:4") + BEHIND, OPEN, "2:4 +7 %, 4:8"),
        (without(ALL, sparsity=0.8), OPEN, "not run: ADMM1 at 80 %"),
        # N:M counts where it was run; other settings do not
        (
            without(without(ALL, pattern="2:4"), pattern="4:8"),
            HOLDS,
            "80 % −9 %; 5",
        ),
        ([*ALL, pruned("admm-grad", "70 %", 99.0, sequences=4)], HOLDS, "70 % −9"),
    ],
)
def test_the_gradual_mask_must_win_every_column(records, expected, words):
    check_claim("The gradual mask", records, expected, words)


def test_admm_grad_must_beat_both():
    runs = DENSE + GRAD + table("wanda", 30.0)
    name = "ADMM-Grad beats SparseGPT"
    check_claim(name, runs, OPEN, "0 of 5 seeds")
    check_claim(name, runs + table("sparsegpt", 15.0), FAILS)
    both = runs + table("sparsegpt", 25.0)
    check_claim(name, both, HOLDS)
    update = "ADMM1, the update alone"
    check_claim(update, both, UNTESTED)
    check_claim(
        update, both + table("admm1", 20.0, *FACTORS), HOLDS, "−20 ± 2 % against Sp"
    )
    check_claim(update, both + table("admm1", 35.0), FAILS)
    best = "ADMM-Grad beats ALPS"
    check_claim(best, runs, UNTESTED)
    check_claim(best, runs + table("alps", 18.0), FAILS)


def changed(changes, seeds, **options):
    """Runs of ADMM-Grad at 60 % with its defaults, and with options that change perplexity so."""
    runs = []
    for seed, change in zip(seeds, changes, strict=True):
        runs.append(pruned("admm-grad", "60 %", 90.0 + seed, seed))
        value = (90.0 + seed) * (1 + change)
        runs.append(pruned("admm-grad", "60 %", value, seed, options=options))
    return runs


CLEAR = (0.04, 0.039, 0.041, 0.04, 0.04)  # deviation 0.000707, times 2.776 / √5


@pytest.mark.parametrize(
    "sentence, changes, expected, words",
    [
        ("Preconditioning matters", CLEAR, HOLDS, "+4.00 ± 0.09 %"),
        # two standard errors are 1.4 %, and three seeds would have decided; t is 4.3
        ("Preconditioning matters", (0.0176, 0.0197, 0.0411), OPEN, "+2.61 ± 3.23 %; "),
        (
            "Preconditioning matters",
            (0.02, 0.04),
            OPEN,
            "+3.00 %; ",
        ),  # of two draws no ±
        ("Preconditioning matters", (0.005,) * 5, FAILS, ""),
        (
            "20 iterations are enough for a mod",
            (-0.04,) * 5,
            FAILS,
            "with 50 iterations instead of 20: −4.00",
        ),
        (
            "The released",
            (0.005,) * 5,
            HOLDS,
            "perplexity with the released schedule: +0.50 ± 0.00 %",
        ),
    ],
)
def test_an_option_is_judged_by_its_change_seed_by_seed(
    sentence, changes, expected, words
):
    options = {
        "P": {"precondition": False},
        "2": {"iterations": 50},
        "T": {"schedule": "released"},
    }
    runs = changed(changes, range(len(changes)), **options[sentence[0]])
    check_claim(sentence, runs, expected, words)


def test_an_option_is_judged_layer_by_layer_too():
    plain, other = changed((0.04,), (0,), precondition=False)
    for layer, factor in zip(other["layers"], (1.02, 0.995, 0.98, 1.5), strict=False):
        layer["error"] *= factor
    words = "error of layers by more than 1 % higher on 2 of 8, lower on 1;"
    check_claim("Preconditioning matters", [plain, other], OPEN, words)


def pairs(*solve, forward=(80, 80)):
    """Pairs of ADMM-Grad and SparseGPT with these seconds of solving, timed alone, a seed each."""
    runs = []
    for seed, both in enumerate(solve):
        for method, passes, own in zip(
            ("admm-grad", "sparsegpt"), forward, both, strict=True
        ):
            parts = {"forward": passes, "solve": own, "prune": passes + own}
            runs.append(pruned(method, "50 %", 1.0, seed, parts))
    return [run | {"timed": True} for run in runs]


def test_overhead_takes_three_timed_pairs_and_their_seconds_as_they_are():
    name = "ADMM-Grad takes"
    # 176, 175 and 174 over 145, and solving alone 56, 55 and 54 over 25
    near = pairs((56, 25), (55, 25), (54, 25), forward=(120, 120))
    words = (
        "1.21 ± 0.02 times as long",
        "solving and selecting alone 2.20 ± 0.10 times",
    )
    check_claim(name, near, HOLDS, *words, "; 3 seeds")
    # passes of 310 s, the same work as 80, are not replaced: 366, 365 and 364 over 105
    check_claim(name, pairs((56, 25), (55, 25), (54, 25), forward=(310, 80)), FAILS)
    two = pairs((60, 40), (60, 40))
    check_claim(name, two, OPEN, "1.17 times", "2 of 3")  # however equal
    check_claim(name, pairs(*[(95, 40)] * 3), FAILS)  # 175 / 120
    check_claim(name, [run | {"timed": False} for run in near], UNTESTED)


def test_a_page_that_decides_nothing_shows_what_points_the_other_way(tmp_path):
    methods = {"dense": 10.0, "admm-grad": 30.0, "sparsegpt": 20.0, "wanda": 20.0}
    runs = [pruned(method, "60 %", value) for method, value in methods.items()]
    page = claims_markdown(runs, tmp_path / "tables", tmp_path)
    (row,) = re.findall(r"(?m)^\| \d+ .*", page)
    assert row.startswith("| 11 | ADMM-Grad beats")
    assert "| **holds** | perplexity at 60 %: +50 % against SparseGPT, +50 %" in row
    assert row.endswith(" | [perplexity](tables/perplexity.md) |")
    assert "full/tables/claims.md)" in page
    # what is decided is shown whole, and what is not tested stands below
    page = claims_markdown(DENSE + GRAD + ONE_SHOT, tmp_path)
    assert len(re.findall(r"(?m)^\| \d+ ", page)) == 1
    assert "| –" not in page
    assert " 20 (needs" in page
    assert (
        " Of 1 claims (1 of the paper), 1 (1) hold, 0 (0) do not, and 0 (0) are not"
        in page
    )
    assert "1, 2, 3, 4" in page.rpartition("Not tested")[2]
    assert "| perplexity at 60 %, one draw elsewhere: −9 ± 2 % against ADMM1 | " in page


def test_a_claim_says_where_the_runs_of_a_second_model_point(tmp_path, monkeypatch):
    for grad, said in (
        (27.0, "yes: perplexity at 60 %: −10 %"),
        (33.0, "**no**: perplexity at"),
    ):
        theirs = [
            pruned("dense", "0 %", 20.0, model="embedded-gemma"),
            pruned("admm-grad", "60 %", grad, model="embedded-gemma"),
            pruned("admm1", "60 %", 30.0, model="embedded-gemma"),
        ]
        committed = {"second": theirs, "full": [], "beyond": []}
        monkeypatch.setattr(
            claims, "read_records", lambda at, of=committed: of[at.parent.name]
        )
        page = claims_markdown(DENSE + GRAD + ONE_SHOT, tmp_path)
        assert (
            "| number | on Gemma-3-270M | evidence |\n| --: | :-- | :-- | :-- | :-- | :-- |"
            in page
        )
        assert (
            "| **holds** | perplexity at 60 %, one draw elsewhere: −9 ± 2 % against ADMM1 | "
            f"{said}" in page
        )
        assert "on Gemma-3-270M |" not in claims_markdown(theirs, tmp_path)


# ------------------------------------------------------------------ layers


def admm(excess, iterations=20, **changes):
    return update_row("admm", iterations, excess=excess, **changes)


def curve(solver, *excess, **changes):
    """After 10, 30 and 100 iterations of 0.1 s."""
    points = {
        "iterations": [10, 30, 100],
        "seconds": [1.0, 3.0, 10.0],
        "excess": list(excess),
    }
    return (
        update_row(solver, precondition=False, damping=0.1, rho=1.0) | points | changes
    )


def layers(count, rows, curves=(), first=0):
    """The same study on so many layers, each timed alone."""
    series = {"update": rows, "curves": list(curves)}
    blocks = range(first, first + count)
    return [
        with_series("02", {"layer": "q", "damping": 0.1, "block": block}, **series)
        | {"timed": True}
        for block in blocks
    ]


SLOW = curve("sgd", 0.9, 0.9, 0.05)
QUICK = curve("adam", 0.01, 0.01, 0.01)


PER_ITERATION = "ADMM beats gradient methods per iteration"
PER_SECOND = "ADMM beats gradient methods per second"


def test_race_counts_the_best_rival_and_its_unit():
    slow = [SLOW, curve("adam", 0.9, 0.9, 0.9)]
    ours = [admm(0.05, seconds=2.0)]
    # 100 for 20
    check_claim(PER_ITERATION, layers(8, ours, slow), HOLDS, "5 times as many")
    for name in (PER_ITERATION, PER_SECOND):
        # too few layers; of ten, nearly all is 90 %, and half is not
        for losing, winning, expected in (
            (7, 0, OPEN),
            (9, 1, HOLDS),
            (8, 2, OPEN),
            (5, 5, FAILS),
        ):
            quick = layers(winning, ours, [QUICK], first=20)
            check_claim(name, layers(losing, ours, slow) + quick, expected)
    # with other runs beside them
    shared = [run | {"timed": False} for run in layers(8, ours, slow)]
    check_claim(PER_SECOND, shared, OPEN, "seconds (median), on a shared machine;")
    check_claim(PER_ITERATION, shared, HOLDS)


def test_a_rival_that_was_stopped_early_or_diverged_has_not_been_beaten():
    never = curve("sgd", 0.9, 0.9, 0.9)  # 100 iterations, 10 s
    slower = layers(8, [admm(0.05, seconds=9.0)], [never])
    check_claim(PER_SECOND, slower, HOLDS, "on 8 it did not get there")
    stopped = layers(8, [admm(0.05, seconds=11.0)], [never])
    check_claim(PER_SECOND, stopped, UNTESTED)
    # no point: infinite at once
    gone = curve("adam") | {"iterations": [], "seconds": []}
    check_claim(PER_SECOND, layers(8, [admm(0.05)], [gone]), UNTESTED)


def test_conjugate_gradients_are_judged_by_iterations():
    name = "ADMM also beats conjugate gradients"
    ours = [admm(0.05, seconds=2.0)]
    words = (
        "5 times as many iterations",
        "; the rival needs 0.5 times as many seconds",
    )
    swift = curve("cg", 0.9, 0.9, 0.05) | {"seconds": [0.1, 0.3, 1.0]}
    shared = [run | {"timed": False} for run in layers(8, ours, [swift])]
    check_claim(name, shared, HOLDS, *words)
    check_claim(name, layers(8, ours, [curve("cg", 0.01, 0.01, 0.01)]), FAILS)


def test_a_rival_whose_best_rate_was_not_found_has_not_been_beaten():
    def rates(*costs):
        """A curve for each of three rates, which gets there after so many iterations."""
        return [
            curve("adam", 0.05, learning_rate=rate, iterations=[cost], seconds=[cost])
            for rate, cost in enumerate(costs, 1)
        ]

    for costs, expected in (
        ((60, 50, 60), HOLDS),
        ((47, 50, 60), HOLDS),  # flat
        ((40, 50, 60), OPEN),
        ((60, 50, 40), OPEN),
        ((9, 12, 60), FAILS),  # a better rate cannot make it slower
    ):
        check_claim(PER_ITERATION, layers(8, [admm(0.05)], rates(*costs)), expected)
    cut = layers(4, [admm(0.05)], rates(40, 50, 60))
    found = layers(6, [admm(0.05)], rates(60, 50, 60), first=4)
    check_claim(PER_ITERATION, cut + found, OPEN, "is inside those tried on 6")


def test_one_record_may_study_many_layers():
    rows, curves = [], []
    for layer in "abcdefgh":
        rows.append(admm(0.05) | {"layer": layer})
        curves.append(SLOW | {"layer": layer})
    many = with_series("02", {"layer": "a", "block": 1}, update=rows, curves=curves)
    check_claim(PER_ITERATION, [many], HOLDS, "more on 8 of 8 problems")


ENOUGH = "20 iterations are enough for a layer."
ONE_RHO = "One ρ"
SCALED = "On one mask, 20 iterations"
EARLY = (0.005, 0.005, 0.005)
LATE = (0.5, 0.005, 0.001)
LATER = (0.9, 0.5, 0.3)
SPARSEGPT = update_row("sparsegpt", None, error=0.018)


FAR = (0.9, 0.005, 0.001)
BETWEEN = (0.02, 0.00119, 0.001)  # 10 + 20 ln 2 / ln 16.8 = 14.9 iterations to 1 %


def pair(scaled, other, **changes):
    """A curve with preconditioning, and one that differs from it, without it unless changed."""
    return [curve("admm", *scaled, precondition=True), curve("admm", *other, **changes)]


THREE = {"rho": 3.0, "precondition": True}


@pytest.mark.parametrize(
    "sentence, rows, curves, expected, words",
    [
        (ENOUGH, [admm(0.009)], [], HOLDS, "within 1 % on 8 of 8"),
        (ENOUGH, [admm(0.02)], [], FAILS, "worst 2 %"),
        (SCALED, [admm(0.1)], pair(EARLY, LATE), HOLDS, "without it on 0 of 8"),
        (SCALED, [admm(0.1)], pair(EARLY, EARLY), FAILS, "; 0 need more"),
        # where it does not get there either, it is not what matters
        (SCALED, [admm(0.1)], pair(LATER, LATE), FAILS, "without it on 0 of 8"),
        (
            ONE_RHO,
            [admm(0.1)],
            pair(EARLY, LATE, **THREE),
            HOLDS,
            "no other ρ was faster, of up to",
        ),
        # another is sooner, which one ρ = 1 need not be, but not by more than twice
        (
            ONE_RHO,
            [admm(0.1)],
            pair(BETWEEN, EARLY, **THREE),
            HOLDS,
            "at most 1.5 times",
        ),
        # from 0.9 at 10 to 0.005 at 30: 10 + 20 ln(0.9 / 0.01) / ln(0.9 / 0.005) = 27.3
        (ONE_RHO, [admm(0.1)], pair(FAR, EARLY, **THREE), FAILS, "at most 2.7 times"),
        (
            ONE_RHO,
            [admm(0.1)],
            pair(LATER, LATER, **THREE),
            FAILS,
            "on 0 of 8",
        ),  # none gets there
        ("On one mask ADMM", [admm(0.009), SPARSEGPT], [], HOLDS, "50 % of SparseGPT"),
    ],
)
def test_claims_about_layers(sentence, rows, curves, expected, words):
    check_claim(sentence, layers(8, rows, curves), expected, words)


# ------------------------------------------------------------------ zero-shot and the page


def answers(*right, items=100, seed=0):
    """Zero-shot runs of wanda, sparsegpt and admm-grad with so many right answers."""
    runs = [
        scored(method, rte=[1] * count + [0] * (items - count))
        for method, count in zip(
            ("wanda", "sparsegpt", "admm-grad"), right, strict=False
        )
    ]
    for run in runs:
        run["parameters"]["calibration_seed"] = seed
    return runs


def seeds(*scores):
    return [
        run for seed, right in enumerate(scores) for run in answers(*right, seed=seed)
    ]


ANSWERS_MORE = "ADMM-Grad answers more"
SECOND = "SparseGPT answers more"


def test_who_answers_more_questions():
    for scores, best, second in (
        ((30, 50, 70), HOLDS, HOLDS),  # each step is 20 ± 4
        ((50, 50, 70), HOLDS, OPEN),
        ((50, 51, 53), OPEN, OPEN),
        ((50, 30, 70), HOLDS, FAILS),
        ((30, 70, 50), FAILS, HOLDS),  # above one of the two is not enough
        ((30, 50), UNTESTED, HOLDS),
    ):
        runs = seeds(*[scores] * 3)
        check_claim(ANSWERS_MORE, runs, best)
        check_claim(SECOND, runs, second)
    two = seeds((30, 50, 70), (30, 50, 70))
    check_claim(
        ANSWERS_MORE, two, OPEN, "2 of 3 seeds", "share of questions: +0.200 ± "
    )
    # a step that only some draws of the calibration text take
    check_claim(ANSWERS_MORE, seeds((30, 50, 70), (30, 50, 70), (30, 50, 40)), OPEN)


def test_the_recipe_is_compared_with_the_answers_of_the_plan_full(monkeypatch):
    committed = seeds(*[(30, 50, 50)] * 3)
    monkeypatch.setattr(model_claims, "read_records", lambda _: committed)
    recipe = seeds(*[(30, 50, 80)] * 3)[2::3]
    for run in recipe:
        run["parameters"]["effort"] = "balanced"
    name = "The recipe answers more zero-shot"
    # nothing moves between draws, so that z counts: 0.3 / 0.0921 · 1.96 = 6.38
    words = ("+0.300 ± 0.092 against ADMM-Grad; mean over RTE; 3 seeds", "p = 1.8e-10")
    check_claim(name, recipe, HOLDS, *words)
    check_claim(name, recipe[:1], OPEN, "1 of 3 seeds")
    check_claim(name, committed, UNTESTED)
    check_claim("The recipe answers more of LAMBADA", recipe, UNTESTED)
