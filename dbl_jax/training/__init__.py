"""Training: phases, the loop, steps, optimizers and checkpoints."""
