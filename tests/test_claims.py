"""Claims: hand-written records on both sides of every test, so that a verdict can be foreseen."""

from pathlib import Path
from typing import Any

import pytest
from handmade import pruned, scored, update_row, with_series

from helpers.results import claims_markdown, write_claims
from helpers.results.claims import CLAIMS, FAILS, HOLDS, OPEN, UNTESTED, Findings, cost_to_reach

TARGETS = ("50 %", "60 %", "70 %", "80 %", "2:4", "4:8")


def verdict(sentence: str, records: list[dict]) -> Any:
    """The outcome of the one claim whose sentence begins so."""
    (claim,) = [claim for claim in CLAIMS if claim.sentence.startswith(sentence)]
    return claim.check(Findings(records))


def test_without_records_nothing_is_claimed() -> None:
    outcomes = [claim.check(Findings([])) for claim in CLAIMS]
    assert {outcome.verdict for outcome in outcomes} == {UNTESTED}
    assert all(outcome.numbers.startswith("needs ") for outcome in outcomes)


# ------------------------------------------------------------------ perplexity


def table(method: str, value: float) -> list[dict]:
    """Runs at every target; at 60 % with two seeds that are 2 % to either side."""
    runs = [pruned(method, target, value) for target in TARGETS if target != "60 %"]
    return runs + [pruned(method, "60 %", (0.98 + 0.04 * seed) * value, seed) for seed in (0, 1)]


def without(records: list[dict], **asked: Any) -> list[dict]:
    """The records that do not ask for this."""
    return [r for r in records if not asked.items() <= r["parameters"].items()]


GRAD, ONE_SHOT = table("admm-grad", 20.0), table("admm1", 22.0)


@pytest.mark.parametrize(
    ("records", "expected", "words"),
    [
        (GRAD + ONE_SHOT, HOLDS, "80 % -9 %, 2:4 -9 %, 4:8 -9 % (seeds: ±2.0 %)"),
        # the later of two records of a run counts
        ([*GRAD, *ONE_SHOT, pruned("admm1", "70 %", 19.0)], FAILS, "70 % +5 %"),
        ([*GRAD, *ONE_SHOT, pruned("admm1", "4:8", 19.0)], FAILS, "4:8 +5 %"),
        (GRAD + table("admm1", 20.2), OPEN, "50 % -1 %"),  # within the noise
        (without(GRAD + ONE_SHOT, calibration_seed=1), OPEN, "no seeds"),
        (without(GRAD + ONE_SHOT, sparsity=0.8), OPEN, "not run: admm1 at 80 %"),
        # N:M counts where it was run; other seeds and settings do not
        (without(without(GRAD + ONE_SHOT, pattern="2:4"), pattern="4:8"), HOLDS, "80 % -9 % ("),
        ([*GRAD, *ONE_SHOT, pruned("admm1", "50 %", 2.0, seed=1)], OPEN, "50 % -9 %"),
        ([*GRAD, *ONE_SHOT, pruned("admm-grad", "70 %", 99.0, sequences=4)], HOLDS, "70 % -9 %"),
    ],
)
def test_the_gradual_mask_must_win_every_column(
    records: list[dict], expected: str, words: str
) -> None:
    outcome = verdict("The gradual mask", records)
    assert outcome.verdict == expected and words in outcome.numbers


def test_admm_grad_must_beat_both() -> None:
    runs = GRAD + table("wanda", 30.0)
    outcome = verdict("ADMM-Grad beats", runs)
    assert outcome.verdict == OPEN and "sparsegpt at 50 %" in outcome.numbers
    assert verdict("ADMM-Grad beats", [*runs, *table("sparsegpt", 25.0)]).verdict == HOLDS
    assert verdict("ADMM-Grad beats", [*runs, *table("sparsegpt", 19.0)]).verdict == FAILS
    runs += without(table("sparsegpt", 25.0), pattern="4:8")  # which is not in the sentence
    assert verdict("ADMM-Grad beats", runs).verdict == HOLDS
    name = "ADMM-Grad wins on the paper's own"
    assert verdict(name, runs).verdict == UNTESTED
    model = {"model": "meta-llama/Llama-2-7b-hf"}
    large = [run | {"parameters": run["parameters"] | model} for run in runs]
    assert verdict(name, large).verdict == HOLDS


def seeded(*values: float, **options: object) -> list[dict]:
    return [pruned("admm-grad", "60 %", v, s, options=options) for s, v in enumerate(values)]


@pytest.mark.parametrize(
    ("sentence", "values", "expected", "words"),
    [
        # +4.1 and +3.9 %: sure, though smaller than the spread over seeds would hide
        ("Preconditioning matters", (102, 106), HOLDS, "+4.00 ± 0.08 %"),
        ("Preconditioning matters", (98.5, 102.5), FAILS, ""),
        # +0.5 ± 0.5 %: at most 1 %, but two standard errors allow more
        ("Preconditioning matters", (98, 103), OPEN, ""),
        ("Preconditioning matters", (120,), OPEN, "one seed cannot tell"),
        ("20 iterations are enough for a mod", (94, 98), FAILS, ""),
        ("20 iterations are enough for a mod", (100, 104), HOLDS, ""),  # worse
        ("The released", (98.5, 102.5), HOLDS, "mean +0.50"),
        ("The released", (99, 101), OPEN, "mean +0.02"),  # two standard errors are 2 %
        ("The released", (96, 99), FAILS, "mean -2"),
        ("The released", (103, 107), FAILS, "mean +5"),
    ],
)
def test_an_option_is_judged_by_its_change_seed_by_seed(
    sentence: str, values: tuple[float, ...], expected: str, words: str
) -> None:
    options = {"P": {"precondition": False}, "2": {"iterations": 50}, "T": {"schedule": "released"}}
    outcome = verdict(sentence, seeded(98.0, 102.0) + seeded(*values, **options[sentence[0]]))
    assert outcome.verdict == expected and words in outcome.numbers


def timed(method: str, forward: float, solve: float, target: str = "50 %", **more: float) -> dict:
    return pruned(method, target, 1.0, seconds={"forward": forward, "solve": solve, **more})


def test_overhead_takes_the_same_passes_for_both() -> None:
    more = {"gram": 10.0, "selection": 5.0}
    # a busy machine made one forward pass slow, which says nothing about the method
    runs = [timed("admm-grad", 300, 50, **more), timed("sparsegpt", 70, 35, **more)]
    runs += [timed("admm-grad", 70, 50, "60 %", **more), timed("sparsegpt", 70, 35, "60 %", **more)]
    outcome = verdict("ADMM-Grad takes", runs)
    assert outcome.verdict == HOLDS
    assert "admm-grad 55 s, sparsegpt 40 s" in outcome.numbers and "80 s" in outcome.numbers
    assert "1.12 times" in outcome.numbers  # 135 / 120
    runs = [timed("admm-grad", 70, 90, **more), timed("sparsegpt", 70, 35, **more)]
    assert verdict("ADMM-Grad takes", runs).verdict == FAILS  # 175 / 120
    del runs[0]["metrics"]["selection_seconds"]  # solve of such a run holds the selection
    assert verdict("ADMM-Grad takes", runs).verdict == UNTESTED
    # on a GPU grams and selection are within forward and solve
    outcome = verdict("ADMM-Grad takes", [timed("admm-grad", 80, 60), timed("sparsegpt", 80, 40)])
    assert outcome.verdict == HOLDS and "1.17 times" in outcome.numbers  # 140 / 120
    assert "16 x 512 calibration tokens, cpu, 2 threads" in outcome.numbers


# ------------------------------------------------------------------ layers


def admm(excess: float, iterations: int = 20, **changes: object) -> dict:
    return update_row("admm", iterations, excess=excess, **changes)


def curve(solver: str, *excess: float, **changes: object) -> dict:
    """After 10, 30 and 100 iterations of 0.1 s."""
    points = {"iterations": [10, 30, 100], "seconds": [1.0, 3.0, 10.0], "excess": list(excess)}
    return update_row(solver, precondition=False, damping=0.1, rho=1.0) | points | changes


def layers(count: int, rows: list[dict], curves: list[dict] = (), first: int = 0) -> list[dict]:
    """The same study on so many layers."""
    series = {"update": rows, "curves": list(curves)}
    asked = {"layer": "q", "damping": 0.1}
    blocks = range(first, first + count)
    return [with_series("02", asked | {"block": block}, **series) for block in blocks]


SLOW, QUICK = curve("sgd", 0.9, 0.9, 0.05), curve("adam", 0.01, 0.01, 0.01)


def test_race_counts_the_best_rival_and_its_unit() -> None:
    slow, ours = [SLOW, curve("adam", 0.9, 0.9, 0.9)], [admm(0.05, seconds=2.0)]
    outcome = verdict("ADMM beats gradient methods per iteration", layers(8, ours, slow))
    assert outcome.verdict == HOLDS and "5 times as many" in outcome.numbers  # 100 for 20
    for unit in ("iteration", "second"):
        # too few layers; of ten, nearly all is 90 %
        for losing, winning, expected in ((7, 0, OPEN), (9, 1, HOLDS), (8, 2, FAILS)):
            mixed = layers(losing, ours, slow) + layers(winning, ours, [QUICK], first=20)
            assert verdict(f"ADMM beats gradient methods per {unit}", mixed).verdict == expected
    assert verdict("ADMM also beats conjugate", layers(8, ours, [QUICK])).verdict == UNTESTED
    at = [{"sparsity": sparsity} for sparsity in (0.5, 0.6, 0.7, 0.8)]
    two = layers(2, [admm(0.06) | one for one in at], [SLOW | one for one in at])
    outcome = verdict("ADMM beats gradient methods per iteration", two)
    assert outcome.verdict == OPEN and "2 of the 8 layers" in outcome.numbers  # not 8 problems


def test_a_rival_that_was_stopped_early_or_diverged_has_not_been_beaten() -> None:
    name = "ADMM beats gradient methods per second"
    never = curve("sgd", 0.9, 0.9, 0.9)  # 100 iterations, 10 s
    outcome = verdict(name, layers(8, [admm(0.05, seconds=9.0)], [never]))
    assert outcome.verdict == HOLDS and "on 8 it did not get there" in outcome.numbers
    assert verdict(name, layers(8, [admm(0.05, seconds=11.0)], [never])).verdict == UNTESTED
    gone = curve("adam") | {"iterations": [], "seconds": []}  # no point: infinite at once
    assert verdict(name, layers(8, [admm(0.05)], [gone])).verdict == UNTESTED
    there = curve("sgd", 0.9, 1e-7, 1e-7)  # the optimum within rounding, after 3 s
    outcome = verdict(name, layers(8, [admm(0.0)], [gone, there]))
    assert outcome.verdict == HOLDS and "did not get there" not in outcome.numbers


def test_cost_between_two_points_is_on_a_straight_line_of_the_logarithm() -> None:
    found = [curve("sgd", 1.0, 0.01, 0.001)]
    for excess, cost in ((0.1, 20), (0.01, 30), (2.0, 10), (0.0001, float("inf"))):
        assert cost_to_reach(found, excess, "iterations") == pytest.approx(cost)
    found.append(curve("sgd", 1.0, 0.0, 0.0))
    assert cost_to_reach(found, 0.001, "seconds") == 3.0  # the sooner; no logarithm of 0


ENOUGH, SCALED, ONE_RHO = "20 iterations are enough for a lay", "Preconditioning (inputs", "One ρ"
EARLY, LATE, LATER = (0.005, 0.005, 0.005), (0.5, 0.005, 0.001), (0.9, 0.5, 0.3)
RHOS = [admm(excess, rho=rho) for rho, excess in ((0.1, 0.3), (1.0, 0.009), (10.0, 0.2))]
NOT_DEFAULT = [admm(0.001, rho=3.0), admm(0.001, 50), admm(0.001, damping=0.05)]
SPARSEGPT = update_row("sparsegpt", None, error=0.018)


def scaled_and_not(scaled: tuple[float, ...], plain: tuple[float, ...]) -> list[dict]:
    """Curves with preconditioning, and without at two ρ."""
    ours = curve("admm", *scaled, precondition=True)
    return [ours, curve("admm", *plain), curve("admm", *LATER, rho=3.0)]


@pytest.mark.parametrize(
    ("sentence", "rows", "curves", "expected", "words"),
    [
        (ENOUGH, [admm(0.009)], [], HOLDS, "within 1 % on 8 of 8"),
        (ENOUGH, [admm(0.02)], [], FAILS, "worst 2 %"),
        (ENOUGH, NOT_DEFAULT, [], UNTESTED, ""),
        (SCALED, [admm(0.1)], scaled_and_not(EARLY, LATE), HOLDS, "miss 1 % on 8 of 8"),
        (SCALED, [admm(0.1)], scaled_and_not(EARLY, EARLY), FAILS, "more without on 0"),
        # where it does not get there either, it is not what matters
        (SCALED, [admm(0.1)], scaled_and_not(LATER, LATE), FAILS, "miss 1 % on 8 of 8"),
        (ONE_RHO, RHOS, [], HOLDS, "ρ = 1 on 8"),
        # another is nearer still, which one ρ = 1 need not be
        (ONE_RHO, [*RHOS, admm(0.0001, rho=0.3)], [], HOLDS, "ρ = 0.3 on 8"),
        (ONE_RHO, [admm(0.02), admm(0.3, rho=0.1)], [], FAILS, "worst 2 %"),
        (ONE_RHO, [admm(0.009)], [], UNTESTED, ""),  # nothing else was tried
        ("On one mask", [*RHOS, SPARSEGPT], [], HOLDS, "median 50 %"),
    ],
)
def test_claims_about_layers(
    sentence: str, rows: list[dict], curves: list[dict], expected: str, words: str
) -> None:
    outcome = verdict(sentence, layers(8, rows, curves))
    assert outcome.verdict == expected and words in outcome.numbers


def test_the_damping_is_that_of_the_study() -> None:
    records = layers(8, NOT_DEFAULT)
    for record in records:
        record["parameters"]["damping"] = 0.05
    assert verdict(ENOUGH, records).verdict == HOLDS


# ------------------------------------------------------------------ zero-shot and the page


def answers(*right: int, items: int = 100) -> list[dict]:
    """Zero-shot runs of wanda, sparsegpt and admm-grad with so many right answers."""
    return [
        scored(method, rte=[1] * count + [0] * (items - count))
        for method, count in zip(("wanda", "sparsegpt", "admm-grad"), right, strict=False)
    ]


def test_zero_shot_order() -> None:
    for scores, expected in (
        ((30, 50, 70), HOLDS),  # each step is 20 ± 4
        ((50, 51, 53), OPEN),
        ((50, 49, 53), OPEN),  # a step down within the noise
        ((50, 30, 70), FAILS),
        ((30, 50), UNTESTED),
    ):
        assert verdict("Zero-shot means", answers(*scores)).verdict == expected
    # answers at another sparsity or to other items are not paired
    records, harder = answers(30, 50, 70), answers(10, 10)
    for record in harder:
        record["parameters"]["sparsity"] = 0.8
    assert verdict("Zero-shot means", records + harder).verdict == HOLDS
    records[1] = answers(50, 50, items=101)[1]
    assert verdict("Zero-shot means", records).verdict == UNTESTED


def test_the_page_has_every_claim_with_its_test(tmp_path: Path) -> None:
    (path,) = write_claims(GRAD + ONE_SHOT, tmp_path)
    lines = path.read_text(encoding="utf-8").splitlines()
    assert sum(line.startswith("| ") and "**" in line for line in lines) == len(CLAIMS)
    assert sum(line.startswith(f"{len(CLAIMS)}. ") for line in lines) == 1
    (gradual,) = [line for line in lines if "gradual mask beats" in line]
    assert "| **holds** | against admm1: 50 % −9 %" in gradual
    assert write_claims([], tmp_path) == []
    # each model is judged by itself
    small, big = pruned("admm-grad", "50 %", 20.0), pruned("admm1", "50 %", 22.0, model="a/big")
    assert "**holds**" not in "".join(claims_markdown([r]) for r in (small, big))
    (path,) = write_claims([small, big], tmp_path)
    assert "## embedded\n" in path.read_text() and "## a/big\n" in path.read_text()
