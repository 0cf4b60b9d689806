"""The one pass over the gradients: which tensors, how they lie, and their norms."""
