"""The studies on small random layers, against sums written out in float64."""

import itertools
import json
import math
import time

import pytest
import torch
from layers import largest, objective

from helpers import study as studies
from helpers.admm import exact_least_squares
from helpers.errors import BadParameter
from helpers.gram import relative_error
from helpers.methods import METHODS
from helpers.study import mask_study, trace_points, update_study

ROW = ("sparsity", "solver", "rho", "precondition", "damping", "learning_rate", "iterations",
       "error", "heldout", "excess", "seconds")  # fmt: skip
CURVE = ("sparsity", "solver", "rho", "precondition", "damping", "learning_rate", "iterations",
         "seconds", "error", "excess")  # fmt: skip


def gram_of_random(seed: int, d_in: int = 32, tokens: int = 120) -> torch.Tensor:
    """Gram of correlated inputs: the mixing is that of every seed, the tokens are not."""
    mixing = torch.randn(d_in, d_in, generator=torch.Generator().manual_seed(99)) / 4
    scales = torch.logspace(-0.5, 0.5, d_in)
    draw = torch.Generator().manual_seed(seed)
    inputs = torch.randn(tokens, d_in, generator=draw) @ (torch.eye(d_in) + mixing) * scales
    return inputs.T @ inputs


@pytest.fixture(scope="module")
def layer() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    weight = torch.randn(24, 32, generator=torch.Generator().manual_seed(5))
    return weight, gram_of_random(1), gram_of_random(2)


@pytest.fixture(scope="module")
def study(layer) -> dict:
    return update_study(*layer, sparsities=(0.5, 0.7), iterations=60)


def pick(study: dict, **wanted: object) -> list[dict]:
    return [row for row in study["update"] if all(row[k] == v for k, v in wanted.items())]


def relative(weight: torch.Tensor, new: torch.Tensor, gram: torch.Tensor) -> float:
    return (objective(weight, new, gram) / objective(weight, 0 * weight, gram)).item()


def wanda_keep(weight: torch.Tensor, gram: torch.Tensor, sparsity: float) -> torch.Tensor:
    return torch.from_numpy(largest((weight.abs() * gram.diagonal().sqrt()).numpy(), sparsity))


# ---------------------------------------------------------------- update_study


@pytest.mark.parametrize("sparsity", [0.5, 0.7])
def test_every_solver_is_there_at_every_sparsity(study: dict, sparsity: float) -> None:
    def settings(solver: str, *names: str) -> list[tuple]:
        rows = pick(study, sparsity=sparsity, solver=solver)
        return sorted({tuple(row[name] for name in names) for row in rows})

    assert settings("none", "damping") == [(None,)]
    assert settings("exact", "damping") == [(0.0,), (0.01,), (0.1,)]
    assert settings("sparsegpt", "damping") == [(0.01,)]
    options = [(rho, scaled, 0.1) for rho in (0.1, 0.3, 1.0, 3.0, 10.0) for scaled in (True, False)]
    expected = {(*one, at) for one in (*options, (1.0, True, 0.01)) for at in (5, 10, 20, 50)}
    assert settings("admm", "rho", "precondition", "damping", "iterations") == sorted(expected)
    assert settings("cg", "precondition", "iterations") == [
        (False, 20), (False, 50), (True, 20), (True, 50)]  # fmt: skip
    for solver, rates in studies.LEARNING_RATES.items():
        expected = itertools.product((False, True), rates, (20, 60))
        found = settings(solver, "precondition", "learning_rate", "iterations")
        assert found == sorted(expected)
    assert len(study["curves"]) == 2 * (11 + 2 + 6 + 6)
    assert all(tuple(row) == ROW for row in study["update"])
    assert all(tuple(curve) == CURVE for curve in study["curves"])
    assert json.loads(json.dumps(study, allow_nan=False)) == study


def test_numbers_are_those_of_the_definitions(layer, study: dict) -> None:
    weight, gram, heldout = layer
    keep = wanda_keep(weight, gram, 0.7)
    best = exact_least_squares(weight.double(), gram.double(), keep, damping=0.1)
    floor = objective(weight, best, gram, 0.1)
    answers = {
        ("none", None): weight * keep,
        ("exact", 0.0): exact_least_squares(weight.double(), gram, keep, damping=0.0),
        ("sparsegpt", 0.01): METHODS["sparsegpt"](weight, gram, keep=keep).weight,
    }
    for (solver, damping), new in answers.items():
        (row,) = pick(study, sparsity=0.7, solver=solver, damping=damping)
        assert row["error"] == pytest.approx(relative(weight, new, gram), rel=1e-4)
        assert row["heldout"] == pytest.approx(relative(weight, new, heldout), rel=1e-4)
        above = (objective(weight, new, gram, 0.1) / floor - 1).item()
        assert row["excess"] == pytest.approx(above, rel=1e-3)
    (row,) = pick(study, sparsity=0.7, solver="exact", damping=0.1)
    assert row["excess"] < 1e-6 and row["heldout"] != row["error"]


def test_nothing_is_below_the_optimum_and_admm_arrives(study: dict) -> None:
    assert all(row["excess"] >= 0 for row in study["update"])
    assert all(min(curve["excess"]) >= 0 for curve in study["curves"])
    for sparsity in (0.5, 0.7):
        (none,) = pick(study, sparsity=sparsity, solver="none")
        (end,) = pick(study, sparsity=sparsity, solver="admm", rho=1.0, precondition=True,
                      damping=0.1, iterations=50)  # fmt: skip
        assert end["excess"] < 1e-3 * none["excess"]
        # another damping has another optimum: it must not look converged
        (other,) = pick(study, sparsity=sparsity, solver="admm", damping=0.01, iterations=50)
        assert other["excess"] > 10 * end["excess"]


def test_curves_end_at_their_rows(study: dict) -> None:
    for curve in study["curves"]:
        key = {k: curve[k] for k in CURVE[:6]}
        last = max(pick(study, **key), key=lambda row: row["iterations"])
        assert curve["iterations"][-1] == last["iterations"]
        for name in ("error", "excess", "seconds"):
            assert curve[name][-1] == pytest.approx(last[name], rel=1e-4)
        assert curve["seconds"] == sorted(curve["seconds"])
        assert len({len(curve[k]) for k in CURVE[6:]}) == 1


def test_a_point_for_each_early_iteration_and_about_eight_a_decade() -> None:
    # by hand: 10^(11/8) = 23.7, 10^(12/8) = 31.6, 42.2, 56.2, 75.0, 100, 133.4, 177.8
    assert trace_points(200)[20:] == [24, 32, 42, 56, 75, 100, 133, 178, 200]
    assert trace_points(20) == list(range(1, 21))


def test_measuring_does_not_count(layer, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(*arguments: torch.Tensor) -> float:
        time.sleep(0.01)
        return relative_error(*arguments)

    monkeypatch.setattr(studies, "relative_error", slow)
    monkeypatch.setattr(studies, "ADMM_ROWS", tuple(range(1, 51)))
    monkeypatch.setattr(studies, "LEARNING_RATES", {})
    monkeypatch.setattr(studies, "RHOS", (1.0,))
    study = update_study(*layer, sparsities=(0.5,))
    seconds = [curve["seconds"][-1] for curve in study["curves"] if curve["solver"] == "admm"]
    assert len(seconds) == 3 and max(seconds) < 0.4  # each slept for half a second in all


def test_a_diverged_curve_is_cut_and_its_rows_are_missing(
    layer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(studies, "LEARNING_RATES", {"adam": (0.01,), "sgd": (1.0, 1e4)})
    study = update_study(*layer, sparsities=(0.5,), iterations=100)
    sgd = [c for c in study["curves"] if c["solver"] == "sgd" and not c["precondition"]]
    fine, cut = sgd
    assert fine["iterations"][-1] == 100
    assert cut["iterations"] and cut["iterations"][-1] < 100
    assert all(map(math.isfinite, cut["error"] + cut["excess"]))
    assert not pick(study, solver="sgd", precondition=False, learning_rate=1e4, iterations=100)


def test_bad_arguments(layer, one_line_error) -> None:
    weight, gram, heldout = layer
    for sparsity in (0.0, 60):
        with one_line_error(BadParameter, "sparsity"):
            update_study(*layer, sparsities=(0.5, sparsity))
    with one_line_error(BadParameter, "iterations"):
        update_study(*layer, iterations=0)
    with one_line_error(BadParameter, "gram"):
        update_study(weight, gram, heldout[:-1, :-1])
    with one_line_error(BadParameter, "gram"):
        mask_study(weight, gram, heldout[:-1, :-1])


# ---------------------------------------------------------------- mask_study


def test_mask_study_changes_one_rule_at_a_time(layer) -> None:
    weight, gram, heldout = layer
    steps_done: list[tuple] = []
    rows = mask_study(
        *layer,
        sparsities=(0.5, 0.7),
        patterns=("unstructured", "2:4"),
        progress=lambda *step: steps_done.append(step),
    )
    assert [done for done, *_ in steps_done] == list(range(1, len(rows) + 1))
    assert {total for _, total, _ in steps_done} == {len(rows)}
    assert steps_done[-1][2] == "2:4 at 50%"
    fields = ("pattern", "sparsity", "mask_steps", "schedule", "budget", "iterations", "error",
              "heldout")  # fmt: skip
    assert all(tuple(row) == fields for row in rows)
    rules = [tuple(row.values())[:5] for row in rows]
    steps = [(n, "paper", "matrix") for n in (0, 5, 10, 15)]
    free = [*steps, (15, "released", "matrix"), (15, "paper", "output")]
    assert rules == [
        *(("unstructured", 0.5, *rule) for rule in free),
        *(("unstructured", 0.7, *rule) for rule in free),
        *(("2:4", 0.5, *rule) for rule in steps),
    ]
    for row in rows:
        options = {k: row[k] for k in ("mask_steps", "schedule", "budget", "iterations")}
        target = {"pattern": row["pattern"], "sparsity": row["sparsity"]}
        new = METHODS["admm-grad"](weight, gram, **target, **options).weight
        assert row["error"] == pytest.approx(relative(weight, new, gram), rel=1e-4)
        assert row["heldout"] == pytest.approx(relative(weight, new, heldout), rel=1e-4)
    assert len({row["error"] for row in rows}) == len(rows), "every rule has an effect"
