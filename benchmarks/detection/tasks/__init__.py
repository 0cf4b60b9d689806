"""Data, losses and metrics that many kinds share."""
