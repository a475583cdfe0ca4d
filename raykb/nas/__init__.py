"""Search for network architectures."""
