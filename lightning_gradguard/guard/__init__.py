"""Whether a step is finite, and what becomes of one that is not."""

from lightning_gradguard.guard.guard import Guard as Guard
