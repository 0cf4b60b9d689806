"""All that hooks into a model: activations, gradients over time, measured updates, structure."""
