"""The benchmarks measure what they say: timing, fits, the published path, page and figures."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch

from benchmarks import __main__ as bench
from benchmarks import (
    architecture,
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
from helpers.paths import reference_dir
from helpers.prune import prune_model

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
    assert machine.describe()["threads"] == torch.get_num_threads()


# --- record, page and figures --------------------------------------------------------------


def test_the_committed_page_is_that_of_the_record() -> None:
    folder = reference_dir("bench")
    record = bench.read(folder)
    page = report.to_page(record)
    assert page == (folder / "bench.md").read_text(encoding="utf-8")
    # a line of it against the record, by hand
    row = record["benchmarks"]["solver"]["result"]["rows"][0]
    ours, ratio = row["seconds"]["ours"]["median"], row["ratio"]
    cells = f"| {ratio['median']:.2f} ({ratio['q1']:.2f} to {ratio['q3']:.2f}) |"
    assert f"| 576x576 | cpu, 1 thr. | {ours:.3g} |" in page and cells in page
    record["benchmarks"]["solver"]["machine"]["warning"] = "load average 9"
    assert "**Warning: load average 9.**" in report.to_page(record)


def test_figures_are_the_same_bytes_each_time() -> None:
    record = bench.read(reference_dir("bench"))
    pictures = figures.to_figures(record)
    assert set(pictures) == {"solver", "model", "growth", "use"}
    assert pictures == figures.to_figures(record)


def test_a_part_is_merged_into_the_record() -> None:
    def entry(cpu: str, *cases: str, **others: str) -> dict:
        rows = [dict(case=case, device="cpu", threads=1, cpu=cpu) for case in cases]
        return {"machine": cpu, "result": {"rows": rows, **others}}

    old = {"schema": 1, "benchmarks": {"growth": {}, "solver": entry("A", "8x8", "9x9", parts="p")}}
    new = entry("B", "8x8")
    merged = bench.merge(old, "solver", new, partial=True)["benchmarks"]
    assert list(merged) == ["solver", "growth"] and merged["solver"]["machine"] == "B"
    kept, fresh = merged["solver"]["result"]["rows"]
    assert kept["case"] == "9x9" and kept["machine"] == "A" and fresh == new["result"]["rows"][0]
    assert merged["solver"]["result"]["parts"] == "p"
    assert bench.merge(old, "solver", new)["benchmarks"]["solver"] == new


def test_a_quick_run_from_the_command_line(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(bench, "reference_dir", lambda _: pytest.fail("the reference is touched"))
    bench.main(["solver", "--quick", "--shapes", "96x64", "--out", str(tmp_path)])
    bench.main(["explorers", "--quick", "--out", str(tmp_path)])
    assert "solver: running" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"bench.json", "bench.md", "solver.png"}
    found = bench.read(tmp_path)["benchmarks"]
    assert [row["case"] for row in found["solver"]["result"]["rows"]] == ["96x64"]
    rows = found["explorers"]["result"]["rows"]
    assert len(rows) == len(explorers.SOLVE) + len(explorers.MASK)
    assert all(row["seconds"]["min"] > 0 and row["seconds"]["repeats"] == 1 for row in rows)
    page = (tmp_path / "bench.md").read_text(encoding="utf-8")
    assert "| mask_schedule_explorer, iteration | 64 x 64 |" in page
    assert bench.parse(["--quick"]).out.name == "bench"
    (tmp_path / "bench.json").write_text('{"schema": 0}')
    with pytest.raises(ValueError, match="schema"):  # a record of another kind is not added to
        bench.main(["solver", "--quick", "--out", str(tmp_path)])


def test_another_architecture(tmp_path: Path) -> None:
    bench.main(["architecture", "--quick", "--out", str(tmp_path)])
    page = (tmp_path / "bench.md").read_text(encoding="utf-8")
    assert "A GPT-2 with" in page and "60 %:" in page and "70 %:" not in page
    (line,) = [line for line in page.splitlines() if line.startswith("| admm-grad | ")]
    assert "| 0.00 |" in line and line.endswith("| 1.00 |")
    assert "| admm-grad, fast | " in page


def test_the_share_of_the_gap_that_a_way_closes() -> None:
    runs = [("dense", 0, 20.0), ("admm-grad", 0, 80.0), ("best", 0, 40.0)]
    runs += [("dense", 1, 20.0), ("admm-grad", 1, 80.0), ("best", 1, 80.0)]
    frame = pd.DataFrame(runs, columns=["way", "seed", "wiki"])
    # half of ln 4 with one draw, nothing with the other
    assert architecture.closed(frame, "best", "wiki") == pytest.approx(1 / 4)


def test_other_steps_of_a_repair(tmp_path: Path) -> None:
    bench.main(["repair", "--quick", "--out", str(tmp_path)])
    page = (tmp_path / "bench.md").read_text(encoding="utf-8")
    rows = [line.split(" | ")[:3] for line in page.splitlines() if line.startswith("| ")][2:]
    # four windows: four steps of one, or one of four, at three rates each
    assert rows[0] == ["| no repair", "0", "–"]
    assert [(row[0], row[1]) for row in rows[1:]] == [("| 1", "4")] * 3 + [("| 4", "1")] * 3


def test_an_answer_that_changes_nothing_is_refused() -> None:
    explorer = layer_solve_explorer(problems.random_weight(16, 16), problems.random_gram(16))
    view = explorer.view
    explorer.draw = lambda *_args, **_values: view
    with pytest.raises(ValueError, match="as before"):
        explorers.answer(explorer, "rho", (0.1, 10.0))()


@pytest.mark.parametrize("arguments", [["speed"], ["model", "--shapes", "576x576"]])
def test_wrong_arguments_are_refused(arguments: list[str], capsys) -> None:
    with pytest.raises(SystemExit):
        bench.parse(arguments)
    assert "error" in capsys.readouterr().err
