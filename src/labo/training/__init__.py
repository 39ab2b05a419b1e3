"""Training a network: the loop, its settings, data loading, optimizers, checkpoints, weight averaging."""
