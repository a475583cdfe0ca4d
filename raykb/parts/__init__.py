"""What two rooms share: skip connections, collectives with gradient, heads."""
