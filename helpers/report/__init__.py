"""Tables, claims, figures and the verdict: pure functions of records."""

from helpers import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "agreement": (
            *("claims_beside", "notes", "numbers_text", "perplexity_text", "summary"),
            "to_lines",
        ),
        "beyond": (
            *("cells_of", "gain_table", "gap_table", "trade_off_figure", "usual_ways"),
            "way_title",
        ),
        "claims": ("claim_verdicts", "claims_markdown", "write_claims"),
        "frame": (
            *("PRUNE_NOTEBOOK", "TASK_NAMES", "ZERO_SHOT_NOTEBOOK", "column_key", "record_id"),
            *("row_key", "run_frame", "target_name"),
        ),
        "pictures": (
            *("block_name", "depth_figure", "growth_figure", "mask_picture", "repair_figure"),
            *("solve_figure", "stream_figure"),
        ),
        "records": (
            *("EXPONENT_WITHOUT_POINT", "check_record", "check_type", "make_record", "read_record"),
            *("read_records", "write_record"),
        ),
        "plots": (
            *("convergence_figure", "figure_alt", "figures", "perplexity_figure"),
            *("schedule_figure", "spectrum_figure", "write_figures"),
        ),
        "published": ("published_markdown", "ratios_markdown", "write_published"),
        "study_plots": ("update_figure",),
        "style": (
            *("DENSE", "finish", "in_words", "new_figure", "plain_log", "short_error", "style_of"),
            "to_png",
        ),
        "tables": ("format_number", "sections", "to_markdown", "write_tables"),
        "verdict": ("equal_to_printed_digits", "judge", "same_run"),
    },
)
