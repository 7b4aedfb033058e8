"""The intervention baked into weights: which parameters write to the stream, the edit, and its
exports.
"""
