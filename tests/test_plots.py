"""Figures: hand-written records in, Figure objects out, with the right numbers on the axes."""

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch
from handmade import pruned, repaired, with_series

from helpers.errors import FileError
from helpers.explore import figures as notebook_figures
from helpers.explore.style import new_figure, set_up_axes
from reproduction import figures as plots
from reproduction.figures import figure_alt, write_figures

CONVERGENCE = {
    "iterations": [1, 2, 3],
    "error": {"ρ = 1": [0.3, 0.2, 0.15]},
    "references": {"no update": 0.4, "exact optimum": 0.149},
    "layer": "block 0 self_attn.o_proj",
    "sparsity": 0.6,
}
SCHEDULE = {
    "sparsity": {"one-shot": [0.6, 0.6], "released": [0.6, 0.6], "paper": [0.4, 0.6]},
    "ratio": {"2:4": {"one-shot": 1.0, "released": 0.9, "paper": 0.8}},
    "mask_steps": 2,
}


@pytest.fixture
def records():
    runs = [
        pruned("admm-grad", "50 %", 30.0),
        pruned("admm-grad", "60 %", 60.0),
        pruned("admm-grad", "60 %", 70.0, seed=1),
        pruned("admm-grad", "60 %", 90.0, options={"schedule": "released"}),
        pruned("magnitude", "50 %", 500.0),
        pruned("admm-grad", "2:4", 80.0),
        pruned("dense", "0 %", 17.5),
    ]
    series = [
        with_series("02", convergence=CONVERGENCE),
        with_series("03", schedule=SCHEDULE),
    ]
    return runs + series


def curves(figure, panel=0):
    """Label to (x, y) of a panel's labelled lines."""
    return {
        str(line.get_label()): (list(line.get_xdata()), list(line.get_ydata()))
        for line in figure.axes[panel].get_lines()
        if not str(line.get_label()).startswith("_")
    }


def title(figure):
    return figure.axes[0].get_title()


def test_perplexity_figure(records):
    figure = plots.perplexity_figure([*records, pruned("my-method", "60 %", 64.5)])
    drawn = curves(figure)
    assert list(drawn) == ["Magnitude", "ADMM-Grad", "my-method", "Dense 17.5"]
    assert drawn["ADMM-Grad"] == ([50.0, 60.0], [30.0, 65.0])  # means over seeds
    assert drawn["Dense 17.5"][1] == [17.5, 17.5]
    # both are lowest
    assert title(figure) == "Perplexity of the model after pruning"
    tied = [*records, pruned("admm1", "50 %", 30.5), pruned("admm1", "60 %", 66.0)]
    assert "ADMM1 and ADMM-Grad have the" in title(plots.perplexity_figure(tied))
    figure = plots.perplexity_figure([*records, pruned("admm1", "50 %", 38.0)])
    places = {text.get_text(): text.xy for text in figure.axes[0].texts}
    assert places["ADMM1"] == (50.0, 38.0)  # its name is beside its only point
    figure = plots.perplexity_figure([*records, pruned("admm1", "60 %", 68.0)])
    assert title(figure).startswith(
        "ADMM-Grad has the lowest perplexity of these methods"
    )
    # the axis ends above the methods that refit, and names do not overlap
    assert 80 < figure.axes[0].get_ylim()[1] < 500
    heights = sorted(text.xy[1] for text in figure.axes[0].texts)
    assert all(high - low >= 0.05 for low, high in pairwise(heights))


def test_ones_own_method_is_not_hidden(records):
    """Not even at the place of another that has one point, too."""
    near = [pruned("admm1", "50 %", 38.5), pruned("my-method", "50 %", 38.0)]
    figure = plots.perplexity_figure([*near, *records])
    figure.draw_without_rendering()
    names = {text.get_text(): text.get_window_extent() for text in figure.axes[0].texts}
    assert names["ADMM1"].y0 >= names["my-method"].y1 - 1
    *others, own, _dense = figure.axes[0].get_lines()
    assert own.get_label() == "my-method"
    for line in others:
        assert own.get_zorder() > line.get_zorder()
        assert own.get_markersize() > line.get_markersize()
        assert own.get_color() != line.get_color()


def test_figures_of_series():
    figure = plots.convergence_figure(CONVERGENCE)
    assert curves(figure)["ADMM, ρ = 1 (recommended)"] == ([1, 2, 3], [0.3, 0.2, 0.15])
    assert figure.axes[0].lines[-1].get_xydata().tolist() == [[3, 0.15]]  # the ring
    assert "optimum's error after 3 iterations" in title(figure)  # 0.15 / 0.149
    assert "(block 0 o_proj, 60 %" in figure.axes[0].get_xlabel()
    assert curves(figure)["no update: 0.4000"][1] == [0.4, 0.4]
    figure = plots.schedule_figure(SCHEDULE)
    assert curves(figure)["gradual mask (paper)"] == ([1, 2], [40.0, 60.0])
    assert "leaves 80 to 90 % of a one-shot mask's error" in figure.get_suptitle()
    table = pd.DataFrame({"step": {0: 1.9, 1: 0.0}, "held": {0: 2.0, 2: 1.5}})
    drawn = curves(notebook_figures.lines_figure(table, xlabel="", ylabel="", marked=2))
    assert drawn["held"] == ([0, 2], [2.0, 1.5])
    assert drawn["kept"] == ([2], [1.5])
    assert pd.isna(drawn["step"][1][1])  # a gap where a log axis has no value


@pytest.mark.parametrize("low, powers", [(0.01, False), (1e-6, True)])
def test_labels_of_a_log_axis_have_one_form_and_do_not_touch(low, powers):
    figure, ax = new_figure(size=(4, 2.5))
    ax.plot([low, 1])
    set_up_axes(ax, "", log=True)
    figure.draw_without_rendering()
    labels = [label for label in ax.get_yticklabels(which="both") if label.get_text()]
    heights = sorted(label.get_window_extent().y0 for label in labels)
    assert min(b - a for a, b in pairwise(heights)) > 10  # pixels
    assert {"e" in label.get_text() for label in labels} == {powers}


def test_labels_of_a_log_axis_have_room_in_explorers():
    """Whose axes stay where they are: whatever the decades, no label touches the next."""
    for low in np.geomspace(0.002, 0.5, 15):
        figure, ax = new_figure(size=(4, 3.9), margins=notebook_figures.MARGINS)
        ax.plot([low, 1])
        set_up_axes(ax, "", log=True)
        figure.draw_without_rendering()
        labels = [each for each in ax.get_yticklabels(which="both") if each.get_text()]
        places = sorted(
            (each.get_window_extent().extents for each in labels), key=lambda e: e[1]
        )
        for below, above in pairwise(places):
            assert above[1] > below[3] + 1  # pixels


def test_pictures_of_masks():
    keep = torch.rand(100, 300) > 0.5
    picture = notebook_figures.mask_figure(keep, "", size=10)
    image = picture.axes[0].get_images()[0].get_array()
    assert image.shape == (10, 20)
    assert (torch.tensor(image.data).bool() == keep[:10, :20]).all()
    assert picture._repr_png_().startswith(b"\x89PNG")  # how Jupyter shows it


def recipe(seeds=1):
    """Runs of notebook 08: perplexities 80 (ADMM-Grad), 60 (guide), 40 (repair), 2 more a seed."""
    runs = []
    for seed in range(seeds):
        more = 2.0 * seed
        runs.append(repaired("admm-grad", "60 %", 80.0 + more, seed=seed))
        guided = {"allocation": "guide", "passes": 1, "seed": seed}
        runs.append(repaired("admm-grad", "60 %", 60.0 + more, 40.0 + more, **guided))
    return runs


def test_the_recipes_steps_are_bars():
    (ax,) = plots.beyond_figure(recipe(seeds=3)).axes
    assert [bar.get_width() for bar in ax.patches] == pytest.approx([82, 62, 42])
    (bars,) = (each for each in ax.collections if len(each.get_segments()) == 3)
    # three draws that are 2 apart: Student's quantile with two degrees of freedom is 4.303
    (left, _), (right, _) = bars.get_segments()[0]
    assert (right - left) / 2 == pytest.approx(4.303 * 2 / 3**0.5, rel=1e-3)
    assert plots.beyond_figure(recipe()[:1]) is None, "without the repair"


def test_an_interval_is_a_bar_unless_it_reaches_zero(records):
    runs = [pruned("alps", "50 %", 30.0 + 2 * seed, seed) for seed in range(3)]
    runs += [pruned("wanda", "50 %", 10.0**seed, seed) for seed in range(3)]
    (ax,) = plots.perplexity_figure([*records, *runs]).axes
    ends = [s[:, 1] for c in ax.collections for s in c.get_segments() if len(s)]
    found = [np.ptp(each) / 2 for each in ends if np.ptp(each) > 0]
    assert found == pytest.approx([4.303 * 2 / 3**0.5], rel=1e-3)


def test_files_of_figures(records, tmp_path, one_line_error):
    shown = set(plots.all_figures(records)) | set(plots.all_figures(recipe()))
    assert shown == set(plots.ALTERNATIVE_TEXTS)
    other = pruned(
        "dense", "0 %", 5.6, model="huggyllama/llama-7b"
    )  # models get a figure each
    assert {"perplexity_embedded", "perplexity_llama-7b"} <= set(
        plots.all_figures([*records, other])
    )
    assert figure_alt("perplexity_llama-7b") == figure_alt("perplexity") != ""
    assert figure_alt("of nothing known") == ""
    paths = write_figures(records[-1:], tmp_path)
    assert [path.name for path in paths] == ["schedule.png"]
    plots.all_figures(records)["schedule"].savefig(tmp_path / "schedule.svg")
    assert (tmp_path / "schedule.svg").read_text("utf-8").startswith("<?xml")
    before = paths[0].read_bytes()
    write_figures(records[-1:], tmp_path)
    assert before == paths[0].read_bytes()
    with one_line_error(FileError, "cannot write"):
        write_figures(records[-1:], paths[0] / "figures")
