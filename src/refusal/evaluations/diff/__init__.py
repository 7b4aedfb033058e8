"""A checkpoint beside the one that it was made from: what they do, paired by prompt."""
