"""Self-supervised learning: a method's formula in the file of its name."""
