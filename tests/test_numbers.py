"""The numbers that the notebooks tell a reader to expect are those of the committed records."""

import json
import math
import re
import statistics

import pytest

from helpers.paths import notebooks_dir, reference_dir, root
from reproduction.claims import OURS, VERDICTS, judge_claims
from reproduction.pipelines import gain_table, perplexity_table, pipeline_table
from reproduction.published import read_published
from reproduction.records import read_record, read_records
from reproduction.tables import accuracy_table

NOTEBOOKS = sorted(path.stem for path in notebooks_dir().glob("*.ipynb"))
NUMBER = re.compile(r"\*\*([-+]?[\d.,]+(?: %| ± [\d.]+)?)\*\*")
# the bold numbers of "What to notice", in the order of its text: plan, run (a mean over its seeds),
# metric and form; or the name of a function below that gives several
PROMISED = {
    "00": """
        full 00_start_here--tour perplexity_dense .0f
        full 00_start_here--tour perplexity_admm-grad .0f
        full 00_start_here--tour perplexity_magnitude .0f
        laptop 04_prune_model--magnitude-50 perplexity .0f
        laptop 04_prune_model--wanda-50 perplexity .1f
        laptop 04_prune_model--admm-grad-50 perplexity .1f
        laptop 04_prune_model--wanda-60 perplexity .1f
        laptop 04_prune_model--admm1-60 perplexity .1f
        laptop 04_prune_model--admm-grad-60 perplexity .1f
    """,
    "01": "massive_tokens",
    "02": """
        laptop 02_admm_layer_solve--default error_no_update .3f
        laptop 02_admm_layer_solve--default error_admm .3f
        laptop 02_admm_layer_solve--default error_sparsegpt .3f
        laptop 02_admm_layer_solve--default distance_to_optimum .1%
    """,
    "03": """
        laptop 03_mask_schedule--default paper_unstructured .0%
        laptop 03_mask_schedule--default released_unstructured .0%
        laptop 03_mask_schedule--default paper_2:4 .0%
        laptop 03_mask_schedule--default paper_4:8 .0%
    """,
    "04": """
        laptop 04_prune_model--admm-grad-60 perplexity .1f
        laptop 04_prune_model--sparsegpt-60 perplexity .1f
        laptop 04_prune_model--wanda-60 perplexity .1f
        laptop 04_prune_model--dense perplexity .1f
        laptop 04_prune_model--admm-grad-50 perplexity .1f
        laptop 04_prune_model--admm-grad-70 perplexity .1f
    """,
    "05": """
        full 05_zero_shot--dense mean_acc .3f
        full 05_zero_shot--admm-grad-50 mean_acc .3f
        full 05_zero_shot--sparsegpt-50 mean_acc .3f
        full 05_zero_shot--wanda-50 mean_acc .3f
        laptop 05_zero_shot--dense mean_acc .3f
        laptop 05_zero_shot--admm-grad-50 mean_acc .3f
        full 05_zero_shot--dense sciq_acc .3f
        full 05_zero_shot--admm-grad-50 sciq_acc .3f
        full 05_zero_shot--sparsegpt-50 sciq_acc .3f
        full 05_zero_shot--wanda-50 sciq_acc .3f
        full 05_zero_shot--dense lambada_openai_acc .3f
        full 05_zero_shot--admm-grad-50 lambada_openai_acc .3f
        full 05_zero_shot--sparsegpt-50 lambada_openai_acc .3f
        full 05_zero_shot--wanda-50 lambada_openai_acc .3f
        full 05_zero_shot--dense boolq_acc .3f
        full 05_zero_shot--admm-grad-50 boolq_acc .3f
        without_boolq
    """,
    "06": """
        verdicts_on_claims
        full 04_prune_model--admm-grad-60 perplexity .1f
        full 04_prune_model--sparsegpt-60 perplexity .1f
        full 04_prune_model--wanda-60 perplexity .1f
        full 04_prune_model--admm-grad-50 perplexity .1f
        full 04_prune_model--sparsegpt-50 perplexity .1f
        full 04_prune_model--admm-grad-70 perplexity .1f
        full 04_prune_model--sparsegpt-70 perplexity .1f
        full 04_prune_model--alps-50 perplexity .1f
        full 04_prune_model--alps-60 perplexity .1f
        admm_grad_above_alps
        full 04_prune_model--admm-grad-2of4 perplexity .1f
        full 04_prune_model--admm-grad-50 perplexity .1f
    """,
    "07": """
        laptop 04_prune_model--admm1-60 perplexity .1f
        laptop 07_your_own_method--my-method-60 perplexity .1f
        laptop 07_your_own_method--my-method-60 mean_layer_error .4f
        laptop 04_prune_model--admm1-60 mean_layer_error .4f
        laptop 04_prune_model--admm-grad-60 perplexity .1f
        laptop 04_prune_model--sparsegpt-60 perplexity .1f
        single_seeds
    """,
    "08": """
        laptop 08_beyond_the_paper--recipe-60 perplexity_dense .1f
        laptop 08_beyond_the_paper--recipe-60 perplexity_layers .1f
        laptop 08_beyond_the_paper--recipe-60 perplexity .1f
        closed_by_the_repair
        beyond_the_paper
    """,
    "09": "bytes_and_speeds",
}


def runs(plan, run):
    """The records of a run, one a seed."""
    folder = reference_dir(plan) / "records"
    paths = [folder / f"{run}.json"]
    for others in ("seed", "part"):  # of the dense model: other questions
        paths += sorted(folder.glob(f"{run}-{others}?.json"))
    return [read_record(path) for path in paths]


def mean(plan, run, metric="perplexity"):
    return statistics.fmean(
        record["metrics"][metric]["value"] for record in runs(plan, run)
    )


def shown(form, *numbers):
    return [format(number, form).replace("%", " %") for number in numbers]


def promised(notebook):
    for line in PROMISED[notebook[:2]].strip().splitlines():
        plan, *rest = line.split()
        if rest:
            run, metric, form = rest
            yield from shown(form, mean(plan, run, metric))
        else:
            yield from globals()[plan]()


def massive_tokens():
    """Of notebook 01: entering blocks 12 to 28."""
    (run,) = runs("laptop", "01_calibration_capture--default")
    sizes = ("condition_gate_proj", "largest_input_down_proj")
    sizes = [round(run["metrics"][name]["value"], -2) for name in sizes]
    first, others = (values[12:29] for values in run["series"]["massive"].values())
    return [*shown(".0f", *sizes, min(first)), *shown(".1f", max(others))]


def without_boolq():
    names = [
        f"05_zero_shot--{name}"
        for name in ("dense", "admm-grad-50", "sparsegpt-50", "wanda-50")
    ]
    means, boolq = (
        [mean("full", name, metric) for name in names]
        for metric in ("mean_acc", "boolq_acc")
    )
    others = ((10 * all - one) / 9 for all, one in zip(means, boolq, strict=True))
    return shown(".3f", *others)


def verdicts_on_claims():
    """Of the paper's claims, then of those that were added."""
    verdicts, _ = judge_claims(read_records(reference_dir("full") / "records"))
    verdicts = verdicts[verdicts["n"] > 0]
    for added in (False, True):
        own = verdicts["verdict"][(verdicts["source"] == OURS) == added]
        counts = own.value_counts()
        yield from (str(counts[each]) for each in VERDICTS if each in counts)


def admm_grad_above_alps():
    for at in (60, 70, 80):
        alps, ours = (
            mean("full", f"04_prune_model--{name}-{at}")
            for name in ("alps", "admm-grad")
        )
        yield from shown(".0%", ours / alps - 1)


def closed_by_the_repair():
    run = ("laptop", "08_beyond_the_paper--recipe-60")
    dense, before, after = (
        math.log(mean(*run, f"perplexity{end}")) for end in ("_dense", "_layers", "")
    )
    return shown(".0%", (before - after) / (before - dense))


def single_seeds():
    """Of notebook 07: how far apart single seeds are at README's setting."""
    own = [
        record["metrics"]["perplexity"]["value"]
        for record in runs("full", "04_prune_model--admm-grad-60")
    ]
    return shown(".1f", min(own), max(own))


def beyond_the_paper():
    """Of notebook 08: perplexities, seconds, shares of the gap, and answers."""
    beyond = read_records(reference_dir("beyond") / "records")
    everything = [*read_records(reference_dir("full") / "records"), *beyond]
    pipelines = pipeline_table(beyond)
    table = perplexity_table(pipelines, "perplexity")[0]["60 %"]
    gains = gain_table(pipelines)[0]
    plain, layers = "admm-grad", "admm-grad, guide, one pass"
    recipe, fast = f"{layers} + distil (64)", f"{layers}, bfloat16 + distil (64)"
    control = "admm-grad (pool=176, sequences=100)"
    times = gains["60 %, seconds / ADMM-Grad's"]
    at_60, at_70 = (gains[f"{at} %, closed (%)"] / 100 for at in (60, 70))
    first = []  # quarter of the repair's steps: its part of the fall of the divergence
    for run in pipelines.query("pipeline == @recipe and target == '60 %'")["record"]:
        start, quarter, *_, last = dict(run["series"]["repair"]["held_out"]).values()
        first.append((start - quarter) / (start - last))
    tasks = ["mean", "LAMBADA (no breaks)"]
    right = accuracy_table(everything)[0].loc["admm-grad + recipe, 50 %"]
    # ± of two standard errors, as on the page of all numbers
    page = (root() / "docs/numbers.md").read_text("utf-8")
    pair = re.findall(r"recipe − ADMM-Grad.*? \| (\+0.*?) \|", page)
    ours, theirs = (
        pipelines[(pipelines["pipeline"] == row) & (pipelines["target"] == "60 %")]
        .set_index("seed")["perplexity"]
        .to_dict()
        for row in (recipe, recipe.replace("admm-grad", "sparsegpt"))
    )
    behind = [math.log(ours[seed] / theirs[seed]) for seed in theirs]
    same_draw = mean("beyond", "08_beyond_the_paper--admm-grad-60-plain-seed0")
    return [
        *shown(".1f", *table[["dense", plain]]),
        *(
            text
            for row in (layers, recipe, fast)
            for text in (*shown(".1f", table[row]), *shown(".2f", times[row]))
        ),
        *shown(".1f", table[control], same_draw),
        *shown(".0%", at_60[control]),
        *shown(".0%", at_60[recipe], at_70[recipe], at_60[layers]),
        *shown(".0%", statistics.fmean(first)),
        *shown(".1%", 1 - math.exp(statistics.fmean(behind))),
        *shown(".0%", at_70[f"{plain}, owl"]),
        *shown(".3f", *right[tasks]),
        *pair,
        *shown(".3f", right.drop(["mean", "BoolQ"]).mean()),
    ]


def bytes_and_speeds():
    """Of notebook 09, at 60 %."""
    path = reference_dir("bench") / "bench.json"
    use = json.loads(path.read_text("utf-8"))["benchmarks"]["use"]["result"]
    share = use["sizes"][1]["share"]
    dense, csr = use["speeds"][5:7]
    speeds = (csr[kind] / dense[kind] for kind in ("prefill", "generation"))
    return shown(".2f", share["mask + float16"], share["mask + int8"], *speeds)


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_bold_numbers_are_those_of_the_records(notebook):
    book = json.loads(text_of(notebook))
    texts = ["".join(cell["source"]) for cell in book["cells"]]
    (text,) = [text for text in texts if text.startswith("## What to notice")]
    numbers = list(promised(notebook))
    assert NUMBER.findall(text) == numbers
    assert NUMBER.search(texts[0])  # the answer to the question in the title
    assert set(NUMBER.findall("\n".join(texts))) <= set(numbers)


def text_of(notebook):
    return (notebooks_dir() / f"{notebook}.ipynb").read_text("utf-8")


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_minutes_and_memory_are_one_figure_each(notebook):
    text = text_of(notebook)
    (said,) = re.findall(
        r"(\d+) minutes? on one (?:CPU )?core(?: of a slow laptop)? and (\d+) GB of mem",
        text,
    )
    minutes, gigabytes = map(int, said)
    assert f"*Kernel > Shut Down Kernel* frees its {gigabytes} GB of mem" in text
    if notebook != NOTEBOOKS[0]:  # whose last table has the minutes of the others
        assert re.search(rf"{notebook}.ipynb.* \| {minutes} \|", text_of(NOTEBOOKS[0]))
    records = read_records(reference_dir("laptop") / "records")
    runs = [run for run in records if run["notebook"] == notebook]
    assert all(run["run_seconds"] < 66 * minutes for run in runs)
    # of the largest run; a notebook without a run in that plan has none
    peaks = [run["peak_memory_bytes"] / 1e9 for run in runs]
    assert abs(max(peaks, default=gigabytes) - gigabytes) < 0.6


def test_layer_error_and_perplexity_disagree_where_06_says_so():
    pairs = [("admm1-70", "sparsegpt-70"), ("admm1-80", "sparsegpt-80")]
    for pair in [*pairs, ("admm-grad-60", "admm-grad-60-budget-output")]:
        one, other = (runs("full", f"04_prune_model--{name}")[0] for name in pair)
        for metric, sign in (("mean_layer_error", 1), ("perplexity", -1)):
            low, high = (run["metrics"][metric]["value"] for run in (one, other))
            assert sign * (high - low) > 0


def test_a_budget_per_output_changes_a_model_as_03_says():
    ours, others = (
        [run["metrics"]["perplexity"]["value"] for run in runs("full", name)]
        for name in (
            "04_prune_model--admm-grad-60",
            "04_prune_model--admm-grad-60-budget-output",
        )
    )
    logs = [math.log(b / a) for a, b in zip(ours, others, strict=False)]
    assert len(logs) == 8  # Student's quantile with seven degrees of freedom is 2.3646
    ratio = math.exp(statistics.mean(logs))
    half = 100 * ratio * 2.3646 * statistics.stdev(logs) / 8**0.5
    change = f"{100 * (ratio - 1):+.1f} ± {half:.1f} %".replace("-", "−")
    assert f"{change} in eight pairs" in text_of("03_mask_schedule")


def test_options_change_a_model_as_03_and_06_say():
    """The released schedule by 2 %, in eight pairs; ALPS by 2 % at 50 %."""
    released, ours, alps, other = (
        mean("full", f"04_prune_model--{name}")
        for name in (
            "admm-grad-60-released",
            "admm-grad-60",
            "alps-50",
            "admm-grad-50",
        )
    )
    assert abs(released / ours - 1) < 0.02
    assert "differ by no more than 2 %" in text_of("03_mask_schedule")
    assert len(runs("full", "04_prune_model--admm-grad-60-released")) == 8
    assert abs(alps / other - 1) < 0.02
    gemma = [
        mean("second", f"04_prune_model--{name}-60")
        for name in ("admm-grad", "sparsegpt")
    ]
    assert gemma[0] < gemma[1]
    assert "is within 2 % of it at 50 %" in text_of("06_tables_and_plots")


def test_halves_beside_numbers_of_08():
    table = pipeline_table(read_records(reference_dir("beyond") / "records"))
    text = text_of("08_beyond_the_paper")
    guided = "admm-grad, guide, one pass"
    for name in ("admm-grad", guided, f"{guided} + distil (64)"):
        own = table.query("target == '60 %' and pipeline == @name")
        assert len(own) == 5  # Student's quantile with four degrees of freedom is 2.776
        value, half = own["perplexity"].mean(), 2.776 * own["perplexity"].sem()
        assert f"**{value:.1f}** ± {half:.1f}" in text
        closed, half = (100 * own["closed"].mean(), 277.6 * own["closed"].sem())
        assert name == "admm-grad" or f"**{closed:.0f} %** ± {half:.0f}" in text


def test_errors_beside_published_ones_as_02_says():
    text = text_of("02_admm_layer_solve")
    theirs = read_published().query("metric == 'relative_layer_error'")
    theirs = theirs.pivot(index="sparsity", columns="method", values="value")
    for high, low in (("admm-grad", "alps"), ("admm on one mask", "pcg on one mask")):
        ratios = " | ".join(shown(".2f", *(theirs[high] / theirs[low])))
        assert f"there | {ratios} |" in text
    shares = []
    for sparsity in (50, 60, 70, 80):
        errors = []
        for method in ("admm-grad", "alps"):
            draws = runs("full", f"04_prune_model--{method}-{sparsity}")
            layers = [run["layers"][1] for run in draws]
            assert layers[0]["name"] == "self_attn.k_proj"
            errors.append([layer["error"] for layer in layers])
        pairs = list(zip(*errors, strict=True))  # in the order of the seeds
        assert len(pairs) == (8 if sparsity == 60 else 4)
        shares.append(statistics.fmean(one / other for one, other in pairs))
    assert f"ALPS, here | – | {' | '.join(shown('.2f', *shares))} | – |" in text
    _, rows = judge_claims(read_records(reference_dir("full") / "records"))
    race = rows[rows["quantity"] == "gradient iterations"].iloc[0]
    assert race["right"] == race["n"] == 32
    times = f"{race['median']:.2g} times as many iterations"
    assert f"need {times} (median of 32 problems, plan `full`)" in text
    table = (reference_dir("full") / "tables/weight_update.md").read_text("utf-8")
    for row in ("ADMM (ρ = 1) | 20", "exact optimum | –", "exact optimum (damping 0) | –",
                "ADMM (ρ = 10, not preconditioned) | 20"):  # fmt: skip
        assert table.split(f"| {row} | 32 | ")[1][:6] in text


def test_few_questions_tell_the_dense_model_from_the_pruned_one_as_05_says():
    right = []
    for name in ("dense", "admm-grad-50"):
        (run,) = runs("laptop", f"05_zero_shot--{name}")
        tasks = run["series"]["zero_shot"]
        right.append(
            {
                (task, item): answer
                for task, answers in tasks.items()
                for item, answer in zip(answers["items"], answers["acc"], strict=True)
            }
        )
    dense, pruned = right
    assert len(dense) == 36
    apart = [dense[question] - pruned[question] for question in dense]
    assert (apart.count(1), apart.count(-1)) == (2, 3)
    said = "Only the dense model is right on two of them, only the pruned one on three"
    assert said in text_of("05_zero_shot")


def test_boolq_is_won_by_saying_yes_as_05_says():
    answers = (
        run["series"]["answers"]["boolq"]
        for run in runs("full", "05_zero_shot--admm-grad-50")
    )
    yes = [100 * statistics.fmean(answered) for answered in answers]
    said = f"one to {min(yes):.0f} to {max(yes):.0f} % of them"
    assert said in text_of("05_zero_shot")


def test_gemma_with_and_without_its_start_token_as_04_says():
    told, without = (
        mean("second", f"04_prune_model--{name}")
        for name in ("dense", "dense-no-start")
    )
    said = re.search(
        r"(?s)perplexity of ([\d.]+)\. Without the token.*? ([\d.]+) on",
        text_of("04_prune_model"),
    )
    assert list(said.groups()) == shown(".1f", told, without)
