"""Tables, claims, figures and the verdict: pure functions of records."""

from helpers import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "agreement": (
            *("claims_markdown", "numbers_text", "summary", "to_lines"),
            "write_claims",
        ),
        "beyond": ("pipeline_title",),
        "pictures": (
            *(
                "block_name",
                "growth_figure",
                "lines_figure",
                "mask_picture",
                "solve_figure",
            ),
            "stream_figure",
        ),
        "frame": ("interval",),
        "plots": (
            *("convergence_figure", "figure_alt", "figures", "perplexity_figure"),
            *("schedule_figure", "write_figures"),
        ),
        "records": (
            *(
                "check_record",
                "check_type",
                "make_record",
                "read_record",
                "read_records",
            ),
            "write_record",
        ),
        "style": (
            *("DENSE", "name_ends", "new_figure", "set_up", "short_error", "style_of"),
            "to_png",
        ),
        "tables": ("format_number", "sections", "to_markdown", "write_tables"),
        "verdict": ("equal_to_printed_digits", "judge", "same_run"),
    },
)
