"""Tables, claims, figures and the verdict: pure functions of records."""

from helpers import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "claims": ("claims_markdown", "write_claims",),
        "plots": ("COLOURS", "DASHES", "DENSE", "MARKERS", "Picture", "block_name", "convergence_figure", "depth_figure", "figures", "growth_figure", "mask_picture", "perplexity_figure", "schedule_figure", "short_error", "solve_figure", "spectrum_figure", "stream_figure", "style_of", "to_png", "update_figure", "write_figures",),
        "published": ("published_markdown", "write_published",),
        "tables": ("METHOD_ORDER", "PRUNE_NOTEBOOK", "TASK_NAMES", "ZERO_SHOT_NOTEBOOK", "column_of", "format_number", "labelled", "mean_of_tasks", "plain_runs", "sections", "target_name", "to_markdown", "write_tables",),
        "verdict": ("judge", "same_run", "to_lines",),
    },
)
