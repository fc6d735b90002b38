"""A language model: pruned, and measured by its perplexity and on zero-shot tasks."""
