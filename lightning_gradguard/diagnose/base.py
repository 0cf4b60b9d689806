"""What a rule is: it reads records, and says what is wrong."""

from __future__ import annotations

from abc import ABC, abstractmethod

from lightning_gradguard.record import Finding, StepRecord


class Rule(ABC):
    """Looks at the records of one optimizer, one after the other, and says what is wrong, if anything is.

    Attributes:
        id: stable name, as users see it and silence it, e.g. ``"vanishing-over-depth"``.
    """

    id: str

    @abstractmethod
    def observe(self, record: StepRecord) -> Finding | None:
        """The finding that holds at this record, or ``None``."""
