"""Where it computes: a layout applied to the model from outside, over torch.distributed."""
