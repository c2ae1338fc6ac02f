"""The first homework: softmax regression and a two-layer network on numpy arrays."""
