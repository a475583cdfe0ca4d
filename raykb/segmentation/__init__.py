"""Segmentation of volumes: networks that a data set's fingerprint plans, and what trains them."""
