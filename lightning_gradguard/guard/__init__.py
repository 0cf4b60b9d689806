"""Whether a step is finite, and what becomes of one that is not."""
