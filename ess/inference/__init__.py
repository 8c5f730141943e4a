"""A trained model at work: views, files in and out, added classes, exports."""
