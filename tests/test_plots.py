"""Figures: hand-written records in, Figure objects out, with the right numbers on the axes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from handmade import pruned, scored, update_row, with_series
from matplotlib.figure import Figure
from matplotlib.text import Text

from helpers.errors import FileError
from helpers.paths import reference_dir
from helpers.report import figure_alt, pictures, plots, style, write_figures
from helpers.report.records import read_records
from helpers.report.study_plots import race_figure

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
        pruned("admm-grad", "50 %", 30.0),
        pruned("admm-grad", "60 %", 60.0),
        pruned("admm-grad", "60 %", 70.0, seed=1),
        pruned("admm-grad", "60 %", 90.0, options={"schedule": "released"}),
        pruned("magnitude", "50 %", 500.0),
        pruned("magnitude", "2:4", 800.0),
        pruned("admm-grad", "2:4", 80.0),
        pruned("dense", "0 %", 17.5),
        with_series("02", convergence=CONVERGENCE),
        with_series("03", schedule=SCHEDULE),
        with_series("01", spectrum=SPECTRUM),
    ]


def curves(figure: Figure, panel: int = 0) -> dict[str, tuple[list, list]]:
    """Label to (x, y) of a panel's labelled lines."""
    return {
        str(line.get_label()): (list(line.get_xdata()), list(line.get_ydata()))
        for line in figure.axes[panel].get_lines()
        if not str(line.get_label()).startswith("_")
    }


def test_perplexity_figure(records: list[dict]) -> None:
    mine = pruned("my-method", "60 %", 64.5, options={"power": 2})
    figure = plots.perplexity_figure([*records, mine], own="my-method")
    found = curves(figure)
    assert list(found) == ["magnitude", "ADMM-Grad", "my-method (power=2)", "dense 17.5"]
    assert found["ADMM-Grad"] == ([50.0, 60.0], [30.0, 65.0])  # means over seeds
    assert found["dense 17.5"][1] == [17.5, 17.5]
    assert curves(figure, 1)["ADMM-Grad"] == ([0], [80.0])
    # the axis ends above the methods that refit
    assert 80 < figure.axes[0].get_ylim()[1] < 500
    only = plots.perplexity_figure([pruned("magnitude", "50 %", 500.0)])
    assert only.axes[0].get_ylim()[1] > 500


def test_errors_by_depth(records: list[dict]) -> None:
    # the lower seed, and no method that saw no text
    assert curves(plots.layer_error_figure(records)) == {
        "ADMM-Grad": ([0, 1, 2, 3], pytest.approx([0.6, 1.2, 1.8, 2.4]))
    }
    assert list(curves(pictures.depth_figure(records[0]["layers"], ""))) == ["q_proj", "down_proj"]


def test_a_colour_means_one_thing() -> None:
    meanings: dict[str, set[str]] = {}
    for label, (colour, *_) in style.LOOKS.items():
        meanings.setdefault(colour, set()).add(label)
    assert [names for names in meanings.values() if len(names) > 1] == [
        {"admm1", "one-shot"},
        {"admm-grad", "paper"},
        {"released", "admm-grad (schedule=released)"},
        {"ADMM", "ρ = 1"},
    ]
    assert not {*style.COLOURS, style.KEPT, style.BEHIND} & set(meanings)


def test_summary_figure_has_the_three_steps(records: list[dict]) -> None:
    figure = plots.summary_figure(records)
    refit, growth, _ = figure.axes
    assert list(refit.get_lines()[0].get_ydata()) == [0.4, 0.3, 0.2, 0.15]  # from no update on
    assert [patch.get_height() for patch in growth.patches] == [80]
    assert curves(figure, 2)["ADMM-Grad"] == ([50.0, 60.0], [30.0, 65.0])
    # without convergence, without schedule, and with nothing pruned yet
    for some in (records[:-3] + records[-2:], records[:-2], records[-4:]):
        assert plots.summary_figure(some) is None
    ends = [("wanda", 25.0), ("admm1", 25.0)]
    runs = records[-4:] + [pruned(method, "60 %", value) for method, value in ends]
    heights = [text.xy[1] for text in plots.summary_figure(runs).axes[2].texts[:2]]
    assert abs(heights[0] - heights[1]) >= 0.05  # names that do not overlap


def test_figures_of_series() -> None:
    figure = plots.convergence_figure(CONVERGENCE)
    assert curves(figure)["ρ = 1"] == ([1, 2, 3], [0.3, 0.2, 0.15])
    assert curves(figure, 1)["ρ = 1"] == ([1, 2, 3], [0.5, 0.1, 0.02])
    assert curves(figure)["no update: 0.4000"][1] == [0.4, 0.4]
    assert curves(plots.schedule_figure(SCHEDULE))["paper"] == ([1, 2], [40.0, 60.0])
    values = curves(plots.spectrum_figure(SPECTRUM))["o_proj"][1]
    assert values[:2] == pytest.approx([1.0, 1 / 3])
    assert values[2] != values[2]  # a gap where a log axis has no value


def test_pictures_of_masks() -> None:
    keep = torch.rand(100, 300) > 0.5
    picture = pictures.mask_picture(keep, size=10)
    image = picture.axes[0].get_images()[0].get_array()
    assert image.shape == (10, 20) and (torch.tensor(image.data).bool() == keep[:10, :20]).all()
    assert picture._repr_png_().startswith(b"\x89PNG")  # how Jupyter shows it
    keep, one_shot = torch.tensor([[True, False], [True, True]]), torch.ones(2, 2).bool()
    one_shot[0, 0] = False
    figure = pictures.growth_figure([0.1, 0.25], [0.2, 0.3], keep, one_shot, iteration=2)
    assert figure.axes[2].get_title().startswith("33.3 %")
    assert figure.axes[2].get_images()[0].get_array().tolist() == [[2, 1], [3, 3]]


def test_pyplot_and_its_settings_stay_out() -> None:
    code = """import sys, matplotlib, helpers.report.plots, helpers.report.style as style
figure, ax = style.new_figure(size=(1, 1))
assert not ax.spines["top"].get_visible() and not matplotlib.rcParams["axes.grid"]
sys.exit("matplotlib.pyplot" in sys.modules)"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_files_of_figures(records: list[dict], tmp_path: Path, one_line_error) -> None:
    names = {"layer_error", "convergence", "schedule", "spectrum", "summary"}
    assert set(plots.figures(records)) == names | {"perplexity"}
    other = pruned("dense", "0 %", 5.6, model="huggyllama/llama-7b")  # models get a figure each
    assert {"perplexity_embedded", "perplexity_llama-7b"} <= set(plots.figures([*records, other]))
    assert figure_alt("perplexity_llama-7b") == figure_alt("perplexity")
    paths = write_figures(records[-1:], tmp_path)
    assert [path.name for path in paths] == ["spectrum.png", "spectrum.svg"]
    before = [path.read_bytes() for path in paths]
    write_figures(records[-1:], tmp_path)
    assert before == [path.read_bytes() for path in paths]
    with one_line_error(FileError, "cannot write"):
        write_figures(records[-1:], paths[0] / "figures")


def test_text_is_as_large_as_a_page_s_and_nothing_is_cut() -> None:
    drawn = plots.figures(read_records(reference_dir("full") / "records"))
    for name, figure in drawn.items():
        figure.draw_without_rendering()
        (left, bottom), (right, top) = figure.get_tightbbox().get_points()
        width, height = figure.get_size_inches()
        assert width == 7 and min(left, bottom) > -0.02, name
        assert right < width + 0.02 and top < height + 0.02, name
        assert min(text.get_fontsize() for text in figure.findobj(Text)) > 8, name
    alts = [figure_alt(name) for name in drawn]
    assert len(set(alts)) == len(drawn) == 9
    assert all(60 < len(alt) < 320 and alt.endswith(".") for alt in alts)
    assert figure_alt("of nothing known") == ""


def test_the_race_is_in_iterations_and_in_admms_own_time() -> None:
    def study(unit: float) -> dict:
        """Adam at two learning rates, two sparsities, so long a step."""
        points = {"iterations": [1, 20, 100], "seconds": [unit, 20 * unit, 100 * unit]}
        found = []
        for sparsity in (0.5, 0.6):
            for solver, rate in (("admm", None), ("adam", 0.1), ("adam", 0.01), ("cg", None)):
                # the small rate ends a little lower but arrives later
                excess = [0.5, 0.2, 0.0001] if rate == 0.01 else [0.5, 0.005, 0.001]
                changes = {"sparsity": sparsity, "learning_rate": rate, "damping": 0.1}
                changes |= {"precondition": solver != "adam", "excess": excess}
                found.append(update_row(solver, **changes) | points)
            found[-1]["seconds"] = [3 * second for second in points["seconds"]]
        return with_series("02", curves=found)

    figure = race_figure([study(unit) for unit in (0.1, 7.0)])  # layers of two sizes
    steps, times = curves(figure), curves(figure, 1)
    assert list(steps) == ["ADMM", "CG", "Adam, not preconditioned", "1 %"]
    x, y = steps["ADMM"]
    assert (x[0], x[-1], y[0], y[-1]) == pytest.approx((1, 100, 0.5, 0.001))
    assert y == pytest.approx(steps["Adam, not preconditioned"][1])  # not the rate that ends lower
    x, _ = times["CG"]
    assert (x[0], x[-1]) == pytest.approx((0.15, 15))  # three times as long, 20 of ADMM are 1
    assert race_figure([]) is None


def test_zero_shot_figure_has_a_bar_for_each_model_and_task() -> None:
    answers = {"rte": [1, 0], "openbookqa": [1, 0]}
    runs = [scored("dense", **answers), scored("wanda", rte=[1, 0, 0, 0], openbookqa=[0, 1])]
    (ax,) = plots.zero_shot_figure(runs).axes
    assert [bar.get_height() for bar in ax.patches] == [0.5, 0.5, 0.5, 0.25, 0.5, 0.375]
    # one of two choices, one of four, and their mean
    (chance,) = (lines for lines in ax.collections if lines.get_label() == "chance")
    assert [segment[0][1] for segment in chance.get_segments()] == [1 / 2, 1 / 4, 3 / 8]
