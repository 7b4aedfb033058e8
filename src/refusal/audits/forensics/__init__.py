"""What was done to a checkpoint's weights: from its files alone, with its base or without.

records.py   what is found, as plain values; words.py: what it cannot say
writers.py   which tensors write to the residual stream; pairs.py: a candidate's beside them
adapter.py   a LoRA adapter as the change that it makes
blocks.py    a weight as blocks of columns; spectrum.py: Gram matrices and their eigenvectors
identity.py  with a base: the projection identity of a layer; frames.py: in which coordinates;
             kept.py: which norms were kept
floor.py     without a base: the rounding floor; grid.py: weights that went through few bits
recipe.py    which recipe the depth kernel resembles
examine.py   all of it, with a base; alone.py: without; repair.py: a verified projection undone
repair_adapter.py: the same as a LoRA adapter
prove.py     a recovered direction tried on the base model
"""
