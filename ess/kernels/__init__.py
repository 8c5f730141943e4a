"""The compiled kernels, each tested against a plain torch formula; ``ess.losses.fused`` chooses among them.

Suffixes of names and shapes in docstrings consist of axes: B images, P pixels (of a block or of all images), C classes, D
dimensions of an embedding, K candidates of a pixel, N pixels of an image or classes of a tile, T tiles, G tiles of a group.
``o_PD`` are the embeddings of P pixels, ``e_CD`` those of C classes, ``logits_PC`` the logit of each class at each pixel.
"""
