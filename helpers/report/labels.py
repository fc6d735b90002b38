"""What tables print: names of methods, tasks, rows and columns, numbers, and Markdown."""

import re
from collections.abc import Mapping
from numbers import Integral
from typing import Any, NamedTuple

import pandas as pd

Parameters = Mapping[str, Any]  # of a run
NO_SPREAD = pd.DataFrame()
METHOD_NAMES = {
    "wanda": "Wanda",
    "sparsegpt": "SparseGPT",
    "admm": "ADMM",
    "admm1": "ADMM1",
    "admm-grad": "ADMM-Grad",
    "alps": "ALPS",
    "owl": "OWL",
    "besa": "BESA",
    "csr": "CSR",
    "cg": "CG",
    "sgd": "SGD",
    "adam": "Adam",
}
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


def display_name(label: str) -> str:
    """A label as tables and figures print it: "ADMM-Grad, OWL" for "admm-grad, owl"."""
    # self_attn.q_proj: the layer's own name
    label = re.sub(r"\b[a-z]\w*\.(?=[a-z])", "", label)
    label = re.sub(r"[\w-]+", lambda word: METHOD_NAMES.get(word[0], word[0]), label)
    return re.sub(r"^(dense|magnitude)\b", lambda word: word[0].capitalize(), label)


def target_name(pattern: str, sparsity: float) -> str:
    """The column of a target: "60 %" for unstructured sparsity, "2:4" for a pattern."""
    return f"{100 * sparsity:.4g} %" if pattern == "unstructured" else pattern


def method_name(parameters: Parameters) -> str:
    """The method of a run, with the recipe that its effort names: "admm-grad + recipe"."""
    method = parameters["method"]
    effort = parameters.get("effort")
    if not effort:
        return method
    return (
        f"{method} + recipe" if effort == "balanced" else f"{method} + {effort} recipe"
    )


def with_options(name: str, options: Parameters) -> str:
    """A name followed by its options: "admm-grad (iterations=50)"."""
    details = ", ".join(f"{key}={value}" for key, value in sorted(options.items()))
    return f"{name} ({details})" if details else name


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


# ------------------------------------------------------------------ numbers and Markdown


def format_number(value: float | str) -> str:
    """Text and counts as they are, NaN as "–", else three digits below 1 and four from there on."""
    if isinstance(value, str):
        return value
    if pd.isna(value):
        return "–"
    if isinstance(value, Integral):
        return f"{value:,}"
    size = abs(value)
    if 0 < size < 0.0995:
        return f"{value:.3g}"
    if 0 < size < 1:
        return f"{value:.3f}"
    if size < 100:
        return f"{value:.2f}"
    if size < 1000:
        return f"{value:.1f}"
    return f"{float(f'{value:.4g}'):,.0f}"


def with_half(value: float | str, half: float) -> str:
    """A number, and ± half of its interval, both with the same decimals; no ± where it is NaN or 0.

    These are the number's own decimals, or those that give ± two digits if that is fewer.
    """
    text = format_number(value)
    if not half > 0:
        return text
    exponent = int(f"{half:.1e}".partition("e")[2])
    decimals = min(len(text.partition(".")[2]), max(0, 1 - exponent))
    return f"{value:,.{decimals}f} ± {half:,.{decimals}f}"


def to_markdown(table: pd.DataFrame, spread: pd.DataFrame = NO_SPREAD) -> str:
    """The table in Markdown, with display names, numbers to the right, and "± spread" if any."""
    spread = spread.reindex_like(table)  # rows such as chance have none
    cells = [map(with_half, table[name], spread[name]) for name in table]
    rows = [[table.index.name or "", *table.columns], [":--", *["--:"] * len(cells)]]
    rows += zip(table.index, *cells, strict=True)
    lines = (" | ".join(map(str, row)) for row in rows)
    return "".join(f"| {display_name(line)} |\n" for line in lines)


# a table, and what stands behind ± of its numbers
WithSpread = tuple[pd.DataFrame, pd.DataFrame]


class Table(NamedTuple):
    """A table with a note in front of it; its frame is None where the records do not allow it.

    `about` tells the tables of one name apart.
    """

    about: str
    note: str
    frame: pd.DataFrame | None
    spread: pd.DataFrame = NO_SPREAD

    @property
    def markdown(self) -> str:
        """Note and table in Markdown."""
        return f"{self.note}\n\n{to_markdown(self.frame, self.spread)}"
