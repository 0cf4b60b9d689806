"""A run as a page and in the terminal."""
