"""The benchmarks measure what they say: timing, the published path, the gap that is closed."""

import shutil

import pandas as pd
import pytest

from benchmarks import architecture, problems, published, solver, timing
from benchmarks.__main__ import read
from benchmarks.machine import TIMED, timed_code
from benchmarks.report import EARLIER, to_page
from helpers.model.prune import prune_model
from helpers.paper.gram import relative_error
from helpers.paths import reference_dir, root

# --- timing --------------------------------------------------------------------------------


def test_runs_alternate_and_the_warm_up_is_not_counted():
    # of a clock that only these runs move on
    now = 0
    order = ""

    def run(name, *seconds):
        left = iter(seconds)

        def wait():
            nonlocal now, order
            now += next(left)
            order += name

        return wait

    runs = {"a": run("a", 9, 1, 2, 3), "b": run("b", 9, 4, 4, 4)}
    before = run("-", *[100] * 8)
    seconds = timing.interleaved(runs, 3, before=before, clock=lambda: now)
    assert order == "-b-a-a-b-b-a-a-b"
    assert seconds == {"a": [1, 2, 3], "b": [4, 4, 4]}


def test_a_ratio_is_taken_within_a_round():
    # the machine is ten times slower in the second round: the ratio does not see it
    seconds = dict(ours=[3, 30, 3], products=[1, 10, 1], inverse=[1, 10, 0.5])
    ratio = timing.ratio(seconds, "ours", "products", "inverse")
    assert ratio == dict(median=1.5, min=1.5, max=2.0, q3=1.75, q1=1.5, repeats=3)


# --- the published path --------------------------------------------------------------------


def test_the_published_path_prunes_a_model_as_ours_does():
    first, second = (problems.random_llama(2, 32, 64, 2) for _ in range(2))
    tokens = problems.random_tokens(first, 4, 64)
    plain = []

    def done(name, weight, new, gram):
        plain.append((relative_error(weight, new, gram), int((new == 0).sum())))

    published.prune(first, tokens, 0.6, done)
    layers = prune_model(second, tokens, method="admm-grad", sparsity=0.6).layers
    assert len(plain) == len(layers) == 14
    for (error, zeros), ours in zip(plain, layers, strict=True):
        assert error == pytest.approx(ours.error, rel=1e-3)
        assert zeros == round(ours.sparsity * ours.shape[0] * ours.shape[1])


def test_a_different_answer_is_refused():
    weight = problems.random_weight(8, 8)
    gram = problems.random_gram(8)
    new = solver.admm_grad(weight, gram)
    same = solver.errors_of(weight, new, new.clone(), gram)
    assert solver.agreement([same]) == {"mean": 0, "largest": 0}
    with pytest.raises(ValueError, match="zeros"):
        solver.errors_of(weight, new, weight, gram)
    with pytest.raises(ValueError, match="differ"):
        solver.agreement([(0.00100, 0.00102)])


# --- what was timed ------------------------------------------------------------------------


def test_the_page_says_what_is_of_earlier_code():
    """Equal bits do not make code equally fast."""
    folder = reference_dir("bench")
    record = read(folder)
    page = (folder / "bench.md").read_text("utf-8")
    assert page == to_page(record), "run python -m benchmarks --page"
    texts = page.split("\n## ")[1:]
    for (name, entry), text in zip(record["benchmarks"].items(), texts, strict=True):
        assert (EARLIER in text) == (entry["code"] != timed_code(name)), name


def test_what_is_timed_is_there(tmp_path):
    for name in ("helpers", "reproduction", "benchmarks"):
        shutil.copytree(root() / name, tmp_path / name)
    codes = {name: timed_code(name) for name in TIMED}
    for file, moved in {
        "helpers/paper/fast/selection.py": {*TIMED} - {"zero_shot", "use"},
        "reproduction/figures.py": set(),
        "benchmarks/timing.py": set(TIMED),
        "benchmarks/zero_shot.py": {"zero_shot"},
    }.items():
        (tmp_path / file).write_text("x = 1")
        found = {name: timed_code(name, tmp_path) for name in TIMED}
        assert moved == {name for name in TIMED if found[name] != codes[name]}
        codes = found


# --- the repair on another architecture ----------------------------------------------------


def test_the_share_of_the_gap_that_a_pipeline_closes():
    pipelines = ["dense", "admm-grad", "recipe"]
    frame = pd.DataFrame({"pipeline": 2 * pipelines, "seed": [0, 0, 0, 1, 1, 1]})
    # half of ln 4 with one draw, nothing with the other
    frame["wiki"] = [20.0, 80.0, 40.0, 20.0, 80.0, 80.0]
    assert architecture.closed(frame, "recipe", "wiki") == pytest.approx(1 / 4)
