"""From prompts to a direction: activations, the refusal metric, the methods, the selection, the
controls.
"""
