"""What training, prediction and loading cost."""
