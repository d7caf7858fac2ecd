"""Where all meet: fit, the model, predict, and what keeps a run alive."""
