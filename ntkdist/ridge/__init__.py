"""Ridge regression on features: fits, models, predictions, run directories and checkpoints."""
