"""The training engine: objective, loop, optimizers, checkpoints and random streams; pure torch."""
