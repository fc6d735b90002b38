"""Figures: hand-written records in, Figure objects out, with the right numbers on the axes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from handmade import pruned, scored, update_row, with_series
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text

from book.drawings import DRAWINGS
from helpers.errors import FileError
from helpers.paths import reference_dir
from helpers.report import figure_alt, in_words, pictures, plots, style, write_figures
from helpers.report.records import read_records
from helpers.report.study_plots import update_figure, update_median_figure, weight_update_figure

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


def texts(figure: Figure, panel: int = 0) -> list[str]:
    return [text.get_text() for text in figure.axes[panel].texts]


def test_perplexity_figure(records: list[dict]) -> None:
    mine = pruned("my-method", "60 %", 64.5, options={"power": 2})
    figure = plots.perplexity_figure([*records, mine], own="my-method")
    left, right = figure.axes
    found = curves(figure)
    assert list(found) == ["magnitude", "ADMM-Grad", "my-method (power 2)"]
    assert found["ADMM-Grad"] == ([50.0, 60.0], [30.0, 65.0])  # means over seeds
    assert left.get_yscale() == "log" and "%" in left.xaxis.get_major_formatter()(50)
    assert [label.get_text() for label in right.get_xticklabels()] == ["2:4"]
    for ax in figure.axes:  # the dense model
        assert any(list(line.get_ydata()) == [17.5, 17.5] for line in ax.get_lines())
    # one's own method stands out, with its number
    looks = {line.get_label(): (line.get_zorder(), line.get_marker()) for line in left.get_lines()}
    own, ours = looks["my-method (power 2)"], looks["ADMM-Grad"]
    assert own[0] > ours[0] and own[1] != ours[1] and "64.5" in texts(figure)
    # the axis ends above the methods that refit, and says what is above it; points have names
    assert 80 < left.get_ylim()[1] < 500
    assert "↑ magnitude\n500.0" in texts(figure) and "off the scale" in left.get_ylabel()
    assert set(texts(figure, 1)) == {"↑ magnitude\n800.0", "ADMM-Grad 80.0", "dense 17.5"}
    # a star is also the marker of the eighth method without a look of its own
    many = [pruned(f"m{number}", "50 %", 30.5 + number) for number in range(8)]
    assert "37.5" not in texts(plots.perplexity_figure(many))
    only = plots.perplexity_figure([pruned("magnitude", "50 %", 500.0)])
    assert only.axes[0].get_ylim()[1] > 500


def test_errors_by_depth(records: list[dict]) -> None:
    # the lower seed, and no method that saw no text
    assert curves(plots.layer_error_figure(records)) == {
        "ADMM-Grad": ([0, 1, 2, 3], pytest.approx([0.6, 1.2, 1.8, 2.4]))
    }
    assert list(curves(pictures.depth_figure(records[0]["layers"]))) == ["q_proj", "down_proj"]


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
    drawn = re.findall("#[0-9A-F]{6}", "".join(draw() for draw in DRAWINGS.values()))
    others = {*style.COLOURS, *plots.PARTS, style.KEPT, style.BEHIND, *drawn}
    assert not others & set(meanings)
    assert style.style_of("admm-grad (rho=3)", 3)["color"] == style.COLOURS[3]  # a variant
    methods = [style.style_of(name) for name in ("magnitude", "wanda", "sparsegpt", "admm1")]
    assert len({look["marker"] for look in methods}) == 4


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ("admm-grad", "ADMM-Grad"),
        ("sparsegpt, 50 %", "SparseGPT, 50 %"),
        ("no update (wanda)", "no update (Wanda)"),
        ("admm-grad (iterations=20)", "ADMM-Grad (20 iterations)"),
        (
            "admm-grad (budget=output, precondition=False)",
            "ADMM-Grad (budget per output, not preconditioned)",
        ),
        ("my-wanda (some_power=0.5)", "my-wanda (some power 0.5)"),
        ("block 3 self_attn.q_proj at 0.5", "block 3 q_proj at 0.5"),
        ("exact optimum, damping 0.1", "exact optimum, damping 0.1"),
    ],
)
def test_labels_in_words(label: str, words: str) -> None:
    assert in_words(label) == words


def test_summary_figure_has_the_three_steps(records: list[dict]) -> None:
    figure = plots.summary_figure(records)
    refit, growth, story = figure.axes
    assert list(refit.get_lines()[0].get_ydata()) == [0.4, 0.3, 0.2, 0.15]  # from no update on
    assert [patch.get_height() for patch in growth.patches] == [80]
    assert curves(figure, 2)["ADMM-Grad"] == ([50.0, 60.0], [30.0, 65.0])
    assert {"↑ magnitude\n500.0", "ADMM-Grad", "dense 17.5"} <= set(texts(figure, 2))
    # without convergence, without schedule, and with nothing pruned yet
    for some in (records[:-3] + records[-2:], records[:-2], records[-4:]):
        assert plots.summary_figure(some) is None
    runs = records[-4:] + [
        pruned(method, target, value)
        for method in ("wanda", "admm1")
        for target, value in (("50 %", 20.0), ("60 %", 25.0))
    ]
    heights = {t.get_text(): t.xy[1] for t in plots.summary_figure(runs).axes[2].texts}
    assert abs(heights["Wanda"] - heights["ADMM1"]) >= 0.05


def test_figures_of_series() -> None:
    figure = plots.convergence_figure(CONVERGENCE)
    assert curves(figure)["ρ = 1"] == ([1, 2, 3], [0.3, 0.2, 0.15])
    assert curves(figure, 1)["ρ = 1"] == ([1, 2, 3], [0.5, 0.1, 0.02])
    assert texts(figure) == ["no update: 0.4000", "exact optimum: 0.1490"]
    figure = plots.schedule_figure(SCHEDULE)
    assert curves(figure)["paper"] == ([1, 2], [40.0, 60.0])
    assert texts(figure, 1) == ["100", "90", "80"]
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
    assert figure.axes[0].get_title(loc="left") == "iteration 2: 25.0 % pruned"
    assert figure.axes[2].get_images()[0].get_array().tolist() == [[2, 1], [3, 3]]


def test_pyplot_stays_out() -> None:
    code = "import sys, helpers.report.plots; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_files_of_figures(records: list[dict], tmp_path: Path, one_line_error) -> None:
    names = {"layer_error", "variants", "convergence", "schedule", "spectrum", "summary"}
    assert set(plots.figures(records)) == names | {"perplexity"}
    other = pruned("dense", "0 %", 5.6, model="huggyllama/llama-7b")  # models get a figure each
    assert {"perplexity_embedded", "perplexity_llama-7b"} <= set(plots.figures([*records, other]))
    assert figure_alt("perplexity_llama-7b") == figure_alt("perplexity")
    paths = write_figures(records[-1:], tmp_path)
    assert [path.name for path in paths] == ["spectrum.png", "spectrum.svg"]
    before = [path.read_bytes() for path in paths]
    write_figures(records[-1:], tmp_path)
    assert before == [path.read_bytes() for path in paths]
    assert write_figures([], tmp_path) == []
    with one_line_error(FileError, "cannot write"):
        write_figures(records[-1:], paths[0] / "figures")


def test_text_is_as_large_as_a_page_s_and_nothing_is_cut() -> None:
    for name, figure in plots.figures(read_records(reference_dir("full") / "records")).items():
        figure.draw_without_rendering()
        (left, bottom), (right, top) = figure.get_tightbbox().get_points()
        width, height = figure.get_size_inches()
        assert width == 7 and min(left, bottom) > -0.02, name
        assert right < width + 0.02 and top < height + 0.02, name
        assert min(text.get_fontsize() for text in figure.findobj(Text)) > 8, name


def test_every_committed_figure_has_an_alternative_text_of_its_own() -> None:
    names = {p.stem for p in reference_dir("full").glob("figures/*.png")}
    alts = [figure_alt(name) for name in names]
    assert len(set(alts)) == len(names) == 13
    assert all(60 < len(alt) < 300 and alt.endswith(".") and "None" not in alt for alt in alts)
    assert figure_alt("of nothing known") == ""


# ------------------------------------------------------------------ studies


def study(block: int = 14, layer: str = "mlp.down_proj", unit: float = 0.1) -> dict:
    """A record of the update study: Adam at two learning rates, two sparsities, so long a step."""
    points = {"iterations": [1, 20, 100], "seconds": [unit, 20 * unit, 100 * unit]}
    found, rows = [], []
    for sparsity in (0.5, 0.6):
        for solver, rate in (("admm", None), ("adam", 0.1), ("adam", 0.01), ("cg", None)):
            # the small rate ends a little lower but arrives later
            excess = [0.5, 0.2, 0.0001] if rate == 0.01 else [0.5, 0.005, 0.001]
            changes = {"sparsity": sparsity, "learning_rate": rate, "damping": 0.1}
            changes |= {"precondition": solver != "adam", "excess": excess}
            changes["error"] = [0.1 * (1 + value) for value in excess]
            found.append(update_row(solver, **changes) | points)
        found[-1]["seconds"] = [3 * second for second in points["seconds"]]
        ends = (("none", 0.2, None), ("sparsegpt", 0.12, 0.01), ("exact", 0.1, 0.1))
        for solver, error, damping in (*ends, ("exact", 0.09, 0.0)):
            row = {"sparsity": sparsity, "error": error, "damping": damping, "seconds": 2.0}
            rows.append(update_row(solver, None, **row))
    return with_series("02", {"block": block, "layer": layer}, update=rows, curves=found)


def test_update_figure() -> None:
    series = study()["series"]
    figure = update_figure(series["update"], series["curves"], 0.6)
    named = curves(figure)
    # 1 + 19 ln(0.5 / 0.01) / ln(0.5 / 0.005) = 17.1 iterations, as claims count between points
    assert list(named) == [
        "ADMM: 17.1 iterations, 1.7 s",
        "CG: 17.1 iterations, 5.1 s",
        "best gradient method (Adam): 17.1 iterations, 1.7 s",
        "other rates, ρ, preconditioning",
    ]
    adam = list(named.values())[2]
    assert adam[1] == pytest.approx([0.15, 0.1005, 0.1001])  # not the rate with the lower end
    # the optimum is that of the damping that the curves have
    ends = ["no update: 0.2000", "SparseGPT (one sweep): 0.1200", "optimum: 0.1000"]
    assert texts(figure) == ends
    grey = [line for line in figure.axes[0].lines if line.get_color() == style.BEHIND]
    assert [0.15, 0.12, 0.10001] in [pytest.approx(list(line.get_ydata())) for line in grey]
    low, high = figure.axes[0].get_ylim()
    assert low < 0.1 and high > 0.2
    # ADMM with another ρ, or without preconditioning, is behind too
    for changes in ({"rho": 9.0}, {"precondition": False}):
        admm = [curve for curve in series["curves"] if curve["solver"] == "admm"]
        better = [curve | changes | {"excess": [0.0] * 3} for curve in admm]
        found = list(curves(update_figure(series["update"], series["curves"] + better, 0.6)))
        assert found == list(named)
    # every gradient method diverged at once
    direct = [curve for curve in series["curves"] if curve["solver"] != "adam"]
    assert len(curves(update_figure(series["update"], direct, 0.6))) == 3


def test_the_study_shown_is_the_default_one() -> None:
    records = [study(2), study(14) | {"name": "default"}]
    (ax,) = weight_update_figure(records).axes
    assert ax.get_title() == "block 14 down_proj, one mask at 60 %"
    assert weight_update_figure([]) is None


def test_median_figure_in_iterations_and_in_admms_own_time() -> None:
    figure = update_median_figure([study(unit=unit) for unit in (0.1, 7.0)])  # layers of two sizes
    left, middle, right, legend = figure.axes
    ours, cg, _ = (dict(zip(*line.get_data(), strict=True)) for line in middle.lines[:3])
    assert min(ours) == pytest.approx(0.05) and max(ours) == pytest.approx(5)  # 1 and 100 of 20
    assert min(cg) == pytest.approx(0.15) and max(cg) == pytest.approx(15)
    assert ours[max(ours)] == pytest.approx(0.001) and cg[min(cg)] == pytest.approx(0.5)
    assert list(left.lines[0].get_ydata()) == pytest.approx([0.5, 0.005, 0.001])
    assert legend.get_legend().get_title().get_text() == "median of 4 problems"
    names = [text.get_text() for text in legend.get_legend().get_texts()]
    assert names == ["ADMM", "CG", "Adam", "ρ = 1", "preconditioned", "not preconditioned"]
    # Adam, which has no preconditioning here, is dashed
    assert [line.get_linestyle() for line in left.lines[:3]] == ["-", "-", "--"]
    assert list(right.lines[0].get_ydata()) == list(left.lines[0].get_ydata())


# ------------------------------------------------------------------ bars


def test_variant_figure_names_what_changed(records: list[dict]) -> None:
    (ax,) = plots.variant_figure(records).axes
    assert [label.get_text() for label in ax.get_yticklabels()] == ["released schedule (one seed)"]
    assert ax.patches[0].get_width() == pytest.approx(50.0)  # 90 against 60 with the same seed
    assert to_hex(ax.patches[0].get_facecolor(), keep_alpha=False).upper() == style.RELEASED[0]


def test_cost_figure_stacks_the_parts() -> None:
    parts = {"forward": 5.0, "gram": 2.0, "solve": 3.0, "selection": 1.0}
    runs = [pruned(method, "50 %", 40.0, seconds=parts) for method in ("wanda", "admm-grad")]
    (ax,) = plots.cost_figure(runs).axes
    ends = [bar.get_x() + bar.get_width() for bar in ax.patches]
    assert ends == [5.0, 5.0, 7.0, 7.0, 10.0, 10.0, 11.0, 11.0]
    assert [text.get_text() for text in ax.get_yticklabels()] == ["Wanda", "ADMM-Grad"]
    on_gpu = pruned("wanda", "50 %", 40.0, seconds={"forward": 7.0, "solve": 4.0})
    (ax,) = plots.cost_figure([on_gpu]).axes
    names = [text.get_text() for text in ax.get_legend().get_texts()]
    assert names == ["forward and gram", "solve and selection"]


@pytest.mark.parametrize("alone", [(False, False), (True, False), (True, True)])
def test_seconds_of_runs_that_shared_the_machine_are_marked(alone: tuple[bool, bool]) -> None:
    parts = {"forward": 5.0, "gram": 2.0, "solve": 3.0, "selection": 1.0}
    runs = [pruned(method, "50 %", 40.0, seconds=parts) for method in ("wanda", "admm-grad")]
    runs, studies = (
        [r | {"timed": True} if t else r for r, t in zip(records, alone, strict=True)]
        for records in (runs, [study(14) | {"name": "default"}, study(2)])
    )
    note = "" if all(alone) else "runs shared the machine"
    # what is not drawn does not count: the dense model, and N:M runs beside others
    others = [pruned("dense", "0 %", 17.5), pruned("wanda", "2:4", 50.0, seconds=parts)]
    assert plots.cost_figure([*runs, *others]).get_supxlabel() == note
    assert update_median_figure(studies).get_supxlabel() == note
    shown = weight_update_figure(studies)  # the first one alone
    assert shown.get_supxlabel() == ("" if alone[0] else "runs shared the machine")


def test_zero_shot_figure_has_a_bar_for_each_model_and_task() -> None:
    answers = {"rte": [1, 0], "openbookqa": [1, 0]}
    runs = [scored("dense", **answers), scored("wanda", rte=[1, 0, 0, 0], openbookqa=[0, 1])]
    (ax,) = plots.zero_shot_figure(runs).axes
    assert [bar.get_height() for bar in ax.patches] == [0.5, 0.5, 0.5, 0.25, 0.5, 0.375]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["RTE", "OBQA", "mean"]
    # one of two choices, one of four, and their mean
    (chance,) = (lines for lines in ax.collections if lines.get_label() == "chance")
    assert [segment[0][1] for segment in chance.get_segments()] == [1 / 2, 1 / 4, 3 / 8]
    assert [text.get_text() for text in ax.get_legend().get_texts()][-1] == "Wanda, 50 %"
