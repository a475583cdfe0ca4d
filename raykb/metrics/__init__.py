"""Figures of merit, as functions of plain tensors and arrays."""
