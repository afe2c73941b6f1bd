"""Networks as functions of tensors: conditioned once, called at every step."""
