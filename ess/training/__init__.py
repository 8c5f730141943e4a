"""The training loop, its objective, its state and its reports."""
