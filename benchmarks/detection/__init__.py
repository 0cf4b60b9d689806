"""Small training runs with one known fault each, and as many healthy ones."""
