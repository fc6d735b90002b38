"""Tables, claims, figures and the verdict: pure functions of records."""

from helpers import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "claims": ("judge_claims",),
        "claims_page": ("claims_markdown", "count_sentence", "write_claims"),
        "labels": ("pipeline_title", "run_title"),
        "markdown": ("format_number", "to_markdown", "with_half"),
        "names": ("short_layer",),
        "notebook_figures": (
            "block_name",
            "gradual_mask_figure",
            "hidden_states_figure",
            "lines_figure",
            "mask_figure",
            "solve_figure",
            "two_inputs_figure",
        ),
        "plots": (
            "all_figures",
            "convergence_figure",
            "figure_alt",
            "perplexity_figure",
            "schedule_figure",
            "write_figures",
        ),
        "records": (
            "check_record",
            "check_type",
            "make_record",
            "read_record",
            "read_records",
            "write_record",
        ),
        "runs_table": ("confidence_interval",),
        "style": (
            "DENSE_COLOUR",
            "label_line_ends",
            "line_style",
            "new_figure",
            "set_up_axes",
            "short_error",
            "to_png",
        ),
        "tables": ("all_tables", "write_tables"),
        "compare": (
            "comparison_lines",
            "judge",
            "main_number",
            "same_run",
            "verdict_page",
            "verdict_summary",
        ),
    },
)
