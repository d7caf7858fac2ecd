"""A job resolved: what will run, whether it fits, what it costs."""
