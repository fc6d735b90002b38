"""Text, questions and the embedded model: pinned by hash, fetched once."""
