"""The files of the page: plain modules and one style sheet, served or built into a report as they are."""

from __future__ import annotations

from pathlib import Path

STATIC = Path(__file__).with_name("static")
CONTENT_TYPES = {".js": "text/javascript", ".css": "text/css"}


def read_assets() -> dict[str, bytes]:
    """Name to content of every file of the page."""
    return {path.name: path.read_bytes() for path in sorted(STATIC.iterdir()) if path.suffix in CONTENT_TYPES}
