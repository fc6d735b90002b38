"""Does today's code compute the same bits? The probes, and the comparison of two commits."""
