"""Training: phases, losses, optimizers, checkpoints, and the interfaces of extensions."""
