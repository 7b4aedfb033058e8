"""Choose one candidate: score it on validation prompts, apply the rule, see how firm the choice
is.
"""
