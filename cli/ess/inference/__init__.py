"""Commands that use a trained model on pictures."""
