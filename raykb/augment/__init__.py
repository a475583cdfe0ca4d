"""Augmentation: policies, their search, and the baselines they are held against."""
