"""The benchmarks measure what they say: timing, fits, the published path, page and figures."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks import __main__ as bench
from benchmarks import (
    explorers,
    figures,
    machine,
    model,
    problems,
    published,
    report,
    solver,
    timing,
)
from helpers.explore import layer_solve_explorer
from helpers.gram import relative_error
from helpers.methods import METHODS
from helpers.prune import prune_model


def summary(middle: float, repeats: int = 5) -> dict[str, float]:
    low, high = 0.9 * middle, 1.1 * middle
    return dict(median=middle, q1=low, q3=high, min=low, max=high, repeats=repeats)


MACHINE = dict(cpu="A CPU", cores=2, threads=1, gpu=machine.NO_GPU, torch="2.9", python="3.11")
MACHINE |= dict(load=0.1, warning=None, date="2030-01-01T00:00:00+00:00", commit="abc")
AGREED = {"mean": 1e-5, "largest": 2e-3}


def solver_row(case: str, ratio: float, small: bool = True) -> dict:
    row = dict(case=case, layers=[[8, 8]], device="cpu", threads=1, ratio=summary(ratio))
    row["seconds"] = {"ours": summary(2 * ratio), "floor": summary(2.0)}
    row["method"] = summary(1.4) if small else None
    row["published"] = summary(6.0, repeats=1) if small else None
    return row | {"difference": AGREED if small else None}


def record() -> dict:
    """A record as a run would write it, by hand."""
    row = dict(case="a model", device="cpu", sequences=8, length=16, batch=1, difference=AGREED)
    names = ("ratio", "without grams", "without gate", "without grams and gate")
    row |= {name: summary(1.1 + 0.01 * place) for place, name in enumerate(names)}
    parts = ("ours", "forward twice", "solver", "published")
    row |= {"seconds": {name: summary(3.0) for name in parts}, "published": summary(2.5)}
    row |= {"gram share": summary(0.1), "gate share": summary(0.02)}
    batch = dict(case="a model", device="cpu", batch=4, speed=summary(1.2))
    curve = dict(name="solver", variable="width", theory=3, sizes=[2, 4], fitted=2.9, top=3.0)
    results = {
        "solver": {
            "rows": [solver_row("8x8", 1.25), solver_row("4096x4096", 1.4, small=False)],
            "parts": {"case": "8x8", "seconds": summary(1.0), "shares": {"products": 0.75}},
        },
        "model": {"rows": [row], "forward": [{**batch, "tokens a second": summary(1234.0)}]},
        "growth": {"curves": [{**curve, "seconds": [summary(1.0), summary(8.0)]}]},
    }
    entry = {"machine": MACHINE, "seconds": 12.3, "quick": False}
    return {"schema": 1, "benchmarks": {k: {**entry, "result": v} for k, v in results.items()}}


# --- timing --------------------------------------------------------------------------------


def test_runs_alternate_and_the_warm_up_is_not_counted() -> None:
    now, order = 0, ""  # of a clock that only these runs move on

    def run(name: str, *seconds: int) -> Callable[[], None]:
        left = iter(seconds)

        def wait() -> None:
            nonlocal now, order
            now, order = now + next(left), order + name

        return wait

    runs = {"a": run("a", 9, 1, 2, 3), "b": run("b", 9, 4, 4, 4)}
    seconds = timing.interleaved(runs, 3, before=run("-", *[100] * 8), clock=lambda: now)
    assert order == "-b-a" + "-a-b" + "-b-a" + "-a-b"
    assert seconds == {"a": [1, 2, 3], "b": [4, 4, 4]}


def test_a_ratio_is_taken_within_a_round() -> None:
    # the machine is ten times slower in the second round: the ratio does not see it
    seconds = {"ours": [3.0, 30.0, 3.0], "products": [1.0, 10.0, 1.0], "inverse": [1.0, 10.0, 0.5]}
    found = timing.ratio(seconds, "ours", "products", "inverse")
    assert found["median"] == found["min"] == 1.5 and found["max"] == 2.0
    assert found["q3"] == 1.75 and found["repeats"] == 3


def test_the_fitted_exponent_is_right() -> None:
    sizes = [512, 768, 1024, 4096]
    found = timing.exponent(sizes, [3e-9 * size**2.5 for size in sizes])
    assert found == pytest.approx(2.5, abs=1e-9)


# --- the published path --------------------------------------------------------------------


def test_the_published_solver_gives_our_answer() -> None:
    weight, gram = problems.random_weight(40, 64), problems.random_gram(64)
    plain = published.solve(weight, gram, 0.6)
    ours = METHODS["admm-grad"](weight, gram, sparsity=0.6)
    assert relative_error(weight, plain, gram) == pytest.approx(ours.error, rel=1e-3)
    assert int((plain == 0).sum()) == int((~ours.keep).sum()) == round(0.6 * weight.numel())


def test_the_published_path_prunes_a_model_as_ours_does() -> None:
    first, second = (problems.random_llama(2, 32, 64, 2) for _ in range(2))
    tokens = problems.random_tokens(first, 4, 64)
    found: list[tuple[float, int]] = []

    def done(name: str, weight: torch.Tensor, new: torch.Tensor, gram: torch.Tensor) -> None:
        found.append((relative_error(weight, new, gram), int((new == 0).sum())))

    published.prune(first, tokens, 0.6, done)
    layers = prune_model(second, tokens, method="admm-grad", sparsity=0.6).layers
    assert len(found) == len(layers) == 14
    for (error, zeros), ours in zip(found, layers, strict=True):
        assert error == pytest.approx(ours.error, rel=1e-3)
        assert zeros == round(ours.sparsity * ours.shape[0] * ours.shape[1])


def test_a_different_answer_is_refused() -> None:
    weight, gram = problems.random_weight(8, 8), problems.random_gram(8)
    new = METHODS["admm-grad"](weight, gram, sparsity=0.5).weight
    same = solver.errors_of(weight, new, new.clone(), gram)
    assert solver.agreement([same]) == {"mean": 0, "largest": 0}
    with pytest.raises(ValueError, match="zeros"):
        solver.errors_of(weight, new, weight, gram)
    small, large = (0.00100, 0.00102), (0.1, 0.1)
    found = solver.agreement([small, large])
    assert found["largest"] == pytest.approx(0.0196, rel=0.01) and found["mean"] < 1e-3
    with pytest.raises(ValueError, match="differ"):
        solver.agreement([small])


# --- what is measured on -------------------------------------------------------------------


def test_a_measured_model_is_left_as_it_was() -> None:
    tiny = problems.random_llama(1, 16, 32, 2)
    before = {name: value.clone() for name, value in tiny.state_dict().items()}
    row = model.measure_model("tiny", tiny, problems.random_tokens(tiny, 2, 8), repeats=1)
    assert all(torch.equal(before[name], value) for name, value in tiny.state_dict().items())
    assert row["published"]["repeats"] == 1 and row["difference"]["mean"] <= solver.TOLERANCE


def test_a_busy_machine_is_reported() -> None:
    assert machine.busy_warning(1.4, 2) is None and machine.busy_warning(None, 2) is None
    assert "1.50" in machine.busy_warning(1.5, 2)
    assert set(machine.describe()) == set(MACHINE)


# --- record, page and figures --------------------------------------------------------------


def test_the_page_of_a_record() -> None:
    page = report.to_page(record())
    assert "| 8x8 | cpu, 1 thr. | 2.50 | 2.00 | 1.25 (1.12 to 1.38) |" in page
    assert "| 4096x4096 | cpu, 1 thr. | 2.80 | 2.00 | 1.40 (1.26 to 1.54) |" in page
    assert "| – | – | – | – |" in page, "what is not measured on a large layer"
    assert "Ours / floor: target at most 1.3, met in 1 of 2." in page
    assert "Published path / ours: target at least 2, met in 1 of 1." in page
    assert "| solver | width | 2 to 4 | 0.900 to 7.20 | 3 | 2.90 | 3.00 |" in page
    assert "no GPU here" in page and "Warning" not in page
    warned = record()
    warned["benchmarks"]["solver"]["machine"] = {**MACHINE, "warning": "load average 9"}
    assert "**Warning: load average 9.**" in report.to_page(warned)


def test_figures_are_the_same_bytes_each_time() -> None:
    pictures = figures.to_figures(record())
    assert set(pictures) == {"solver", "model", "growth"}
    assert pictures == figures.to_figures(record())


def test_parts_merge_into_one_record() -> None:
    old = record()
    moved = {**MACHINE, "cpu": "Another CPU"}
    row = solver_row("8x8", 1.1)
    entry = {"machine": moved, "seconds": 1.0, "quick": False, "result": {"rows": [row]}}
    part = bench.merge(old, "solver", entry, partial=True)["benchmarks"]
    assert list(part) == list(old["benchmarks"])
    kept, new = part["solver"]["result"]["rows"]
    assert kept["case"] == "4096x4096" and kept["machine"] == MACHINE and new == row
    assert part["solver"]["result"]["parts"] == old["benchmarks"]["solver"]["result"]["parts"]
    whole = bench.merge(old, "solver", entry)["benchmarks"]
    assert whole["solver"] == entry and whole["model"] == old["benchmarks"]["model"]


def test_the_record_is_short_and_reads_back() -> None:
    value = {"a": [{"b": 1.23456789, "c": "ü"}] * 9, "d": None, "e": []}
    text = bench.to_json(bench.rounded(value))
    assert json.loads(text) == {"a": [{"b": 1.235, "c": "ü"}] * 9, "d": None, "e": []}
    assert max(map(len, text.splitlines())) <= 121


def test_a_quick_run_from_the_command_line(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(bench, "reference_dir", lambda _: pytest.fail("the reference is touched"))
    bench.main(["solver", "--quick", "--shapes", "96x64", "--out", str(tmp_path)])
    assert "solver: running" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"bench.json", "bench.md", "solver.png"}
    rows = bench.read(tmp_path)["benchmarks"]["solver"]["result"]["rows"]
    assert [row["case"] for row in rows] == ["96x64"]
    assert bench.parse(["--quick"]).out.name == "bench"


def test_answers_of_the_explorers_are_timed(tmp_path: Path) -> None:
    bench.main(["explorers", "--quick", "--out", str(tmp_path)])
    rows = bench.read(tmp_path)["benchmarks"]["explorers"]["result"]["rows"]
    assert len(rows) == len(explorers.SOLVE) + len(explorers.MASK)
    assert all(row["seconds"]["min"] > 0 and row["seconds"]["repeats"] == 1 for row in rows)
    page = (tmp_path / "bench.md").read_text(encoding="utf-8")
    assert "Seconds over their target: target at most 1, met in" in page
    assert "| mask_schedule_explorer, iteration | 64 x 64 |" in page


def test_an_answer_that_changes_nothing_is_refused() -> None:
    explorer = layer_solve_explorer(problems.random_weight(16, 16), problems.random_gram(16))
    same = explorer.figure
    explorer.draw = lambda **_: same
    run = explorers.answer(explorer, "rho", (0.1, 10.0))
    with pytest.raises(ValueError, match="as before"):
        run()


def test_a_record_of_another_schema_is_not_added_to(tmp_path: Path) -> None:
    (tmp_path / "bench.json").write_text('{"schema": 0}')
    with pytest.raises(ValueError, match="schema"):
        bench.main(["solver", "--quick", "--out", str(tmp_path)])


@pytest.mark.parametrize("arguments", [["speed"], ["model", "--shapes", "576x576"]])
def test_wrong_arguments_are_refused(arguments: list[str], capsys) -> None:
    with pytest.raises(SystemExit):
        bench.parse(arguments)
    assert "error" in capsys.readouterr().err
