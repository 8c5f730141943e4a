"""Uses a trained model: prediction, added classes, exports.

Suffixes of tensor names in this folder give their shapes: B images, P pixels, C classes, D channels of the model's output
(embedding dimensions, or logits of a dense head), H and W rows and columns.
"""
