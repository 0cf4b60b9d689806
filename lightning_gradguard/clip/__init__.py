"""Clipping policies, one a file."""
