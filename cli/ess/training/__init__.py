"""Commands that train models and describe what can be trained."""
