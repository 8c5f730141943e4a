"""How good a model is: pixels counted by class, the scores from them, and reports."""
