"""Figures: synthetic records in, Figure objects out, with the right numbers on the axes."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from matplotlib.figure import Figure

from helpers.errors import RecordError
from helpers.results import plots

LAYERS = ("self_attn.q_proj", "mlp.down_proj")


def record(method: str, sparsity: float, perplexity: float, **parameters: object) -> dict:
    blind = method in ("dense", "magnitude")
    layers = [
        {"block": block, "name": name, "error": None if blind else sparsity * (block + 1) / 100}
        for block in range(4)
        for name in LAYERS
    ]
    settings = {"model": "embedded", "pattern": "unstructured", "options": {}}
    return {
        "notebook": "04_prune_model",
        "parameters": settings | {"method": method, "sparsity": sparsity} | parameters,
        "metrics": {"perplexity": {"value": perplexity, "unit": "1"}},
        "layers": [] if method == "dense" else layers,
        "series": None,
    }


def series_record(name: str, series: dict) -> dict:
    return {
        "notebook": "x",
        "parameters": {},
        "metrics": {},
        "layers": None,
        "series": {name: series},
    }


CONVERGENCE = {
    "iterations": [1, 2, 3],
    "error": {"ρ = 1": [0.3, 0.2, 0.15]},
    "distance": {"ρ = 1": [0.5, 0.1, 0.02]},
    "references": {"no update": 0.4, "exact optimum": 0.149},
    "layer": "block 0 o_proj",
    "sparsity": 0.6,
}
SCHEDULE = {
    "sparsity": {"one-shot": [0.6, 0.6], "released": [0.6, 0.6], "paper": [0.4, 0.6]},
    "ratio": {"2:4": {"one-shot": 1.0, "released": 0.9, "paper": 0.8}},
}
SPECTRUM = {
    "eigenvalues": {"q_proj": [4.0, 1.0, 0.0], "o_proj": [9.0, 3.0, -1e-9]},
    "norms": {"q_proj": [8.0, 2.0, 0.0], "o_proj": [3.0, 2.0, 1.0]},
}


@pytest.fixture
def records() -> list[dict]:
    return [
        record("admm-grad", 0.5, 30.0),
        record("admm-grad", 0.6, 60.0, calibration_seed=0),
        record("admm-grad", 0.6, 70.0, calibration_seed=1),
        record("admm-grad", 0.6, 90.0, calibration_seed=0, options={"schedule": "released"}),
        record("magnitude", 0.5, 500.0),
        record("magnitude", 0.5, 800.0, pattern="2:4"),
        record("admm-grad", 0.5, 80.0, pattern="2:4"),
        record("dense", 0.0, 17.5),
        series_record("convergence", CONVERGENCE),
        series_record("schedule", SCHEDULE),
        series_record("spectrum", SPECTRUM),
    ]


def curves(figure: Figure, panel: int = 0) -> dict[str, tuple[list, list]]:
    """Label to (x, y) of a panel's labelled lines."""
    lines = figure.axes[panel].get_lines()
    return {
        line.get_label(): (list(line.get_xdata()), list(line.get_ydata()))
        for line in lines
        if not str(line.get_label()).startswith("_")
    }


def test_perplexity_figure_has_means_over_seeds_and_the_dense_line(records: list[dict]) -> None:
    figure = plots.perplexity_figure(records)
    left, right = figure.axes
    found = curves(figure)
    assert list(found) == ["magnitude", "admm-grad"]
    assert found["admm-grad"] == ([50.0, 60.0], [30.0, 65.0])
    assert left.get_yscale() == "log" and "%" in left.get_xlabel()
    assert [label.get_text() for label in right.get_xticklabels()] == ["2:4"]
    for ax in figure.axes:
        assert any(list(line.get_ydata()) == [17.5, 17.5] for line in ax.get_lines())


def test_a_method_of_ones_own_stands_out_from_the_others(records: list[dict]) -> None:
    def looks(figure: Figure) -> dict[str, tuple]:
        lines = figure.axes[0].get_lines()
        return {line.get_label(): (line.get_marker(), line.get_zorder()) for line in lines}

    mine = record("my-method", 0.6, 64.5, options={"power": 2})
    plain = looks(plots.perplexity_figure([*records, mine]))
    figure = plots.perplexity_figure([*records, mine], own="my-method")
    found = looks(figure)
    (label,) = found.keys() - {"magnitude", "admm-grad"} - {k for k in found if k[0] == "_"}
    assert label.startswith("my-method")
    assert found[label][1] > max(order for _, order in plain.values())
    assert found["admm-grad"] == plain["admm-grad"]
    assert [text.get_text() for text in figure.axes[0].texts] == ["64.5"]


def test_perplexity_figure_with_the_dense_run_alone() -> None:
    plots.to_png(plots.perplexity_figure([record("dense", 0.0, 17.5)]))


def test_layer_error_figure_averages_a_block_and_leaves_out_blind_methods(
    records: list[dict],
) -> None:
    found = curves(plots.layer_error_figure(records, 0.5))
    assert list(found) == ["admm-grad"]
    blocks, errors = found["admm-grad"]
    assert blocks == [0, 1, 2, 3]
    assert errors == pytest.approx([0.005, 0.01, 0.015, 0.02])


def test_depth_figure_has_a_curve_for_each_kind_of_layer() -> None:
    found = curves(plots.depth_figure(record("wanda", 0.5, 1.0)["layers"], "wanda"))
    assert list(found) == ["q_proj", "down_proj"]


def test_depth_figure_says_so_when_there_is_nothing_to_draw() -> None:
    figure = plots.depth_figure([])
    assert "no layer errors" in figure.axes[0].texts[0].get_text()


def test_methods_keep_their_look_and_variants_do_not_borrow_it() -> None:
    looks = [plots.style_of(name) for name in plots.METHOD_LOOK]
    assert len({look["color"] for look in looks}) == len({look["marker"] for look in looks}) == 5
    variant = plots.style_of("admm-grad (schedule=released)", 3)
    assert variant["color"] not in {look["color"] for look in looks}
    assert plots.style_of("wanda", 0) == plots.style_of("wanda", 4)


def test_convergence_figure(records: list[dict]) -> None:
    figure = plots.convergence_figure(CONVERGENCE)
    assert curves(figure)["ρ = 1"] == ([1, 2, 3], [0.3, 0.2, 0.15])
    assert curves(figure, 1)["ρ = 1"] == ([1, 2, 3], [0.5, 0.1, 0.02])
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts == ["no update: 0.4000", "exact optimum: 0.1490"]


def test_summary_figure_tells_the_three_steps(records: list[dict]) -> None:
    figure = plots.summary_figure(records)
    refit, growth, story = figure.axes
    curve = refit.get_lines()[0]
    assert list(curve.get_ydata()) == [0.4, 0.3, 0.2, 0.15], "it begins at no update"
    assert [patch.get_height() for patch in growth.patches] == [80]
    names = {line.get_label(): line for line in story.get_lines()}
    table = plots._perplexities(plots.prune_records(records))
    for method in ("magnitude", "admm-grad"):
        cells = {k: v for k, v in table[method].items() if ":" not in k}
        means = sorted(sum(values) / len(values) for values in cells.values())
        assert sorted(names[method].get_ydata()) == pytest.approx(means)
        assert method in [text.get_text() for text in story.texts]


def test_summary_figure_needs_all_three_steps(records: list[dict]) -> None:
    for series in ("convergence", "schedule"):
        assert (
            plots.summary_figure([r for r in records if series not in (r["series"] or {})]) is None
        )
    assert plots.summary_figure([r for r in records if r["series"]]) is None


def test_summary_figure_keeps_names_of_equal_curves_apart() -> None:
    runs = [record("dense", 0.0, 5.0), series_record("convergence", CONVERGENCE)]
    runs += [series_record("schedule", SCHEDULE)]
    runs += [record(m, s, 10.0 / (1 - s)) for m in ("wanda", "admm1") for s in (0.5, 0.6)]
    texts = {t.get_text(): t.xy[1] for t in plots.summary_figure(runs).axes[2].texts}
    assert abs(texts["wanda"] - texts["admm1"]) >= 0.05


def test_schedule_figure_writes_the_number_on_each_bar() -> None:
    figure = plots.schedule_figure(SCHEDULE)
    assert curves(figure)["paper"] == ([1, 2], [40.0, 60.0])
    assert [text.get_text() for text in figure.axes[1].texts] == ["100", "90", "80"]


def test_spectrum_figure_leaves_a_gap_where_a_log_axis_has_no_value() -> None:
    figure = plots.spectrum_figure(SPECTRUM)
    values = figure.axes[0].get_lines()[1].get_ydata()
    assert values[:2] == pytest.approx([1.0, 1 / 3]) and values[2] != values[2]


def test_mask_picture_shows_the_corner() -> None:
    keep = torch.rand(100, 300) > 0.5
    image = plots.mask_picture(keep, size=10).axes[0].get_images()[0]
    assert image.get_array().shape == (10, 20)
    assert (torch.tensor(image.get_array().data).bool() == keep[:10, :20]).all()


def test_growth_figure_counts_what_moved() -> None:
    keep, one_shot = torch.tensor([[True, False], [True, True]]), torch.ones(2, 2).bool()
    one_shot[0, 0] = False
    figure = plots.growth_figure([0.1, 0.25], [0.2, 0.3], keep, one_shot)
    assert figure.axes[2].get_title().startswith("33.3 %")
    assert figure.axes[0].get_title(loc="left") == "iteration 2: 25.0 % pruned"
    assert figure.axes[2].get_images()[0].get_array().tolist() == [[2, 1], [3, 3]]


def test_write_figures_writes_png_and_svg_and_the_same_bytes_again(
    records: list[dict], tmp_path
) -> None:
    paths = plots.write_figures(records, tmp_path)
    names = {"perplexity", "layer_error", "variants", "convergence", "schedule", "spectrum"}
    names.add("summary")
    assert {path.name for path in paths} == {f"{n}.{k}" for n in names for k in ("png", "svg")}
    before = {path: path.read_bytes() for path in paths}
    assert all(before.values())
    plots.write_figures(records, tmp_path)
    assert before == {path: path.read_bytes() for path in paths}


def test_several_models_get_a_figure_each(records: list[dict]) -> None:
    drawn = plots.figures([*records, record("dense", 0.0, 5.6, model="huggyllama/llama-7b")])
    assert {"perplexity_embedded", "perplexity_llama-7b"} <= set(drawn)


def test_no_records_no_figures(tmp_path) -> None:
    assert plots.write_figures([], tmp_path) == []


def test_write_figures_into_a_file_is_one_line(
    records: list[dict], tmp_path, one_line_error
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("x")
    with one_line_error(RecordError, "cannot write"):
        plots.write_figures(records, blocked / "figures")


def test_figures_show_in_jupyter_and_pyplot_stays_out() -> None:
    assert plots.mask_picture(torch.ones(4, 4).bool())._repr_png_().startswith(b"\x89PNG")
    code = "import sys, helpers.results.plots; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# ------------------------------------------------------------------ studies


def study(block: int = 14, layer: str = "mlp.down_proj") -> dict:
    """A record of the update study: each rival at two learning rates, at two sparsities."""
    base = dict.fromkeys(("rho", "precondition", "damping", "learning_rate"))
    curves, rows = [], []
    for sparsity in (0.5, 0.6):
        for solver, rates in {"admm": [None], "adam": [0.1, 0.01], "cg": [None]}.items():
            for rate in rates:
                # the small rate ends a little lower but arrives later
                late = rate == 0.01
                excess = [0.5, 0.2, 0.0001] if late else [0.5, 0.005, 0.001]
                settings = {"solver": solver, "sparsity": sparsity, "learning_rate": rate}
                settings |= {"precondition": solver != "adam", "damping": 0.1}
                settings |= {"rho": 1.0 if solver == "admm" else None}
                errors = [0.1 * (1 + value) for value in excess]
                points = {"iterations": [1, 10, 100], "seconds": [0.1, 1.0, 10.0]}
                curves.append(base | settings | points | {"excess": excess, "error": errors})
        for solver, error, damping in (
            ("none", 0.2, None),
            ("sparsegpt", 0.12, 0.01),
            ("exact", 0.1, 0.1),
            ("exact", 0.09, 0.0),
        ):
            row = {"solver": solver, "sparsity": sparsity, "error": error, "damping": damping}
            rows.append(base | row | {"seconds": 2.0, "iterations": None, "excess": 0.0})
    series = {"update": rows, "curves": curves}
    return {
        "notebook": "02_admm_layer_solve",
        "parameters": {"model": "embedded", "block": block, "layer": layer},
        "metrics": {},
        "series": series,
    }


def test_update_figure_draws_the_rate_that_arrives_first() -> None:
    series = study()["series"]
    figure = plots.update_figure(series["update"], series["curves"], 0.6)
    by_iteration, by_second = curves(figure), curves(figure, 1)
    assert list(by_iteration) == ["ADMM", "CG", "Adam", "optimum", "SparseGPT (one sweep)"]
    assert by_iteration["Adam"][1] == pytest.approx([0.15, 0.1005, 0.1001])  # not the lower end
    assert by_second["ADMM"][0] == [0.1, 1.0, 10.0]
    assert by_iteration["optimum"][1] == [0.1, 0.1]  # of the damping that the curves have
    assert by_second["SparseGPT (one sweep)"] == ([2.0], [0.12])
    # the rate that arrives later is a thin line without a name
    (other,) = [line for line in figure.axes[1].lines if line.get_alpha()]
    assert list(other.get_ydata()) == pytest.approx([0.15, 0.12, 0.10001])
    assert other.get_label().startswith("_")
    low, high = figure.axes[0].get_ylim()
    assert low < 0.09 and high > 0.2


def test_update_figure_has_each_solver_in_both_coordinates() -> None:
    series = study()["series"]
    other = [curve | {"precondition": not curve["precondition"]} for curve in series["curves"]]
    other += [curve | {"rho": 9.0} for curve in other if curve["solver"] == "admm"]  # left out
    found = curves(plots.update_figure(series["update"], series["curves"] + other, 0.6))
    names = ["ADMM", "ADMM, not preconditioned", "CG", "CG, not preconditioned"]
    assert list(found) == [
        *names,
        "Adam",
        "Adam, preconditioned",
        "optimum",
        "SparseGPT (one sweep)",
    ]


def test_median_figure_in_iterations_and_in_admms_own_time() -> None:
    def with_twenty(record: dict) -> dict:
        for curve in record["series"]["curves"]:
            slow = 3.0 if curve["solver"] == "cg" else 1.0
            curve["iterations"] = [1, 20, 100]
            curve["seconds"] = [slow * record["unit"] * step for step in (1, 20, 100)]
        return record

    records = [with_twenty(study() | {"unit": unit}) for unit in (0.1, 7.0)]  # layers of two sizes
    figure = plots.update_median_figure(records)
    left, middle, right = figure.axes
    ours, cg, _ = (dict(zip(*line.get_data(), strict=True)) for line in middle.lines[:3])
    assert min(ours) == pytest.approx(0.05) and max(ours) == pytest.approx(5)  # 1 and 100 of 20
    assert min(cg) == pytest.approx(0.15) and max(cg) == pytest.approx(15)
    assert ours[max(ours)] == pytest.approx(0.001) and cg[min(cg)] == pytest.approx(0.5)
    assert list(left.lines[0].get_ydata()) == pytest.approx([0.5, 0.005, 0.001])
    assert "median of 4 problems" in left.get_ylabel()
    assert right.lines[0].get_marker() != "None"


def test_layers_of_the_middle_block_are_drawn_side_by_side() -> None:
    records = [study(block, name) for block in (2, 14, 27) for name in ("a.q_proj", "b.o_proj")]
    records.append(study(12, "c.o_proj"))  # one layer more, of a block of its own
    drawn = plots.figures(records)["weight_update"]
    assert [ax.get_title() for ax in drawn.axes[:2]] == ["block 14 q_proj", "block 14 o_proj"]
    assert len(plots.figures(records[:1])["weight_update"].axes) == 2


def test_variant_figure_names_what_changed(records: list[dict]) -> None:
    figure = plots.variant_figure(records)
    (ax,) = figure.axes
    assert [label.get_text() for label in ax.get_yticklabels()] == ["schedule=released (one seed)"]
    assert ax.patches[0].get_width() == pytest.approx(50.0)  # 90 against 60 with the same seed


def test_cost_figure_stacks_the_parts() -> None:
    runs = [record("wanda", 0.5, 40.0), record("admm-grad", 0.5, 30.0)]
    for run in runs:
        parts = {"forward": 5.0, "gram": 2.0, "solve": 3.0, "selection": 1.0}
        run["metrics"] |= {f"{k}_seconds": {"value": v, "unit": "s"} for k, v in parts.items()}
        run |= {"peak_memory_bytes": 1, "device": "cpu, 1 thread"}
    (ax,) = plots.cost_figure(runs).axes
    ends = [bar.get_x() + bar.get_width() for bar in ax.patches]
    assert ends == [5.0, 5.0, 7.0, 7.0, 10.0, 10.0, 11.0, 11.0]
    for run in runs:  # as on a GPU
        for part in ("gram", "selection"):
            del run["metrics"][f"{part}_seconds"]
    (ax,) = plots.cost_figure(runs).axes
    names = [text.get_text() for text in ax.get_legend().get_texts()]
    assert names == ["forward and gram", "solve and selection"]


def test_zero_shot_figure_has_a_bar_for_each_model_and_task() -> None:
    def scored(method: str, value: float) -> dict:
        run = record(method, 0.5, 1.0)
        metrics = {"rte_acc": value, "rte_acc_stderr": 0.05}
        run["metrics"] = {k: {"value": v, "unit": "1"} for k, v in metrics.items()}
        return run | {"notebook": "05_zero_shot", "data": {}}

    (ax,) = plots.zero_shot_figure([scored("dense", 0.5), scored("wanda", 0.25)]).axes
    assert [bar.get_height() for bar in ax.patches] == [0.5, 0.5, 0.25, 0.25]  # RTE and the mean
    assert [label.get_text() for label in ax.get_xticklabels()] == ["RTE", "mean"]
