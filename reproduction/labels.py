"""Names of runs, and of the rows and columns of tables, with the order in which they stand."""

from collections.abc import Mapping
from typing import Any

from helpers.explore.names import display_name
from helpers.paths import ZERO_SHOT_NOTEBOOK

PRUNE_NOTEBOOK = "04_prune_model"
METHOD_ORDER = ("dense", "magnitude", "wanda", "sparsegpt", "admm1", "admm-grad")
TASK_NAMES = {
    "boolq": "BoolQ",
    "rte": "RTE",
    "hellaswag": "HellaSwag",
    "winogrande": "WinoGrande",
    "arc_easy": "ARC-e",
    "arc_challenge": "ARC-c",
    "openbookqa": "OBQA",
    "piqa": "PIQA",
    "sciq": "SciQ",
    "lambada_openai": "LAMBADA (no breaks)",
}


# ------------------------------------------------------------------ rows and columns


def method_name(parameters: Mapping[str, Any]) -> str:
    """The method of a run, with the recipe that its effort names: "admm-grad + recipe"."""
    method = parameters["method"]
    effort = parameters.get("effort")
    if not effort:
        return method
    return (
        f"{method} + recipe" if effort == "balanced" else f"{method} + {effort} recipe"
    )


def with_options(name: str, options: Mapping[str, Any]) -> str:
    """A name followed by its options: "admm-grad (iterations=50)"."""
    details = ", ".join(f"{key}={value}" for key, value in sorted(options.items()))
    return f"{name} ({details})" if details else name


def target_name(pattern: str, sparsity: float) -> str:
    """The column of a target: "60 %" for unstructured sparsity, "2:4" for a pattern."""
    return f"{100 * sparsity:.4g} %" if pattern == "unstructured" else pattern


def row_key(label: str) -> tuple[int, str]:
    """Sort key of rows: methods in the paper's order, each before its variants, others last."""
    method = label.partition(" ")[0]
    return [*METHOD_ORDER, method].index(method), label


def column_key(column: str) -> tuple[float, ...]:
    """Sort key of columns: dense, then sparsities, then N:M patterns by the size of a group."""
    if column == "dense":
        return (0,)
    if ":" in column:
        kept, group = map(int, column.split(":"))
        return 2, group, kept
    return 1, float(column.split()[0])


# ------------------------------------------------------------------ pipelines and runs


def steps_name(parameters: Mapping[str, Any]) -> str:
    """What a pipeline adds to the method, without the repair: ", guide (2), one pass"."""
    allocation = parameters.get("allocation")
    text = f", {allocation}" if allocation else ""
    sequences = parameters.get("guide_sequences", 4)
    if allocation == "guide" and sequences != 4:
        text += f" ({sequences})"
    if parameters.get("passes") == 1:
        text += ", one pass"
    precision = parameters.get("precision", "float32")
    return text if precision == "float32" else f"{text}, {precision}"


def repair_name(parameters: Mapping[str, Any]) -> str:
    """The repair of a pipeline (distillation): " + distil (64)", "" without one."""
    parts = parameters.get("repair")
    if not parts:
        return ""
    name = "distil" if parts == "all" else f"distil {parts}"
    return f" + {name} ({parameters['repair_windows']})"


def pipeline_title(parameters: Mapping[str, Any]) -> str:
    """What a run of notebook 04, 05 or 08 does: "admm-grad, owl + distil (64) at 60 %"."""
    if parameters["method"] == "dense":
        return "dense"
    name = with_options(method_name(parameters), parameters.get("options") or {})
    target = target_name(parameters["pattern"], parameters["sparsity"] or 0.0)
    return f"{name}{steps_name(parameters)}{repair_name(parameters)} at {target}"


def recipe_title(parameters: Mapping[str, Any]) -> str:
    """A run with sparsity allocation and repair: "recipe (08) at 60 %", "Wanda + recipe (08) ...".

    08 is the notebook that explains it.
    """
    method = parameters["method"]
    title = "recipe (08)"
    if method != "admm-grad":
        title = f"{display_name(method)} + {title}"
    precision = parameters.get("precision", "float32")
    if precision != "float32":
        title += f" in {precision}"
    return f"{title} at {target_name(parameters['pattern'], parameters['sparsity'])}"


def run_title(run_id: str, parameters: Mapping[str, Any]) -> str:
    """In words: "ADMM-Grad at 60 %, seed 1", "recipe (08) at 60 %", "notebook 02, default"."""
    notebook, _, name = run_id.partition("--")
    if parameters.get("allocation") and parameters.get("repair"):
        title = recipe_title(parameters)
    elif notebook in (PRUNE_NOTEBOOK, ZERO_SHOT_NOTEBOOK):
        title = display_name(pipeline_title(parameters))
    else:
        return f"notebook {notebook.partition('_')[0]}, {name}"
    if notebook == ZERO_SHOT_NOTEBOOK:
        title = f"zero-shot, {title}"
    title += f", {parameters['model']}, "
    if parameters.get("start_token", "auto") != "auto":
        title += f"start_token={parameters['start_token']}, "
    seed, part = parameters["calibration_seed"], parameters.get("task_part", 0)
    title += f"seed {seed}"
    title = title.replace(", embedded,", ",").removesuffix(", seed 0")  # what is usual
    # draws of answers have questions of their own; a dense model has no other seed
    return f"{title}, questions {part + 1}" if part != seed and part else title
