"""Two small trainings that go wrong, and what the library makes of them: ``gradguard demo``."""
