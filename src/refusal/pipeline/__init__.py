"""A whole run as a list of stages, and what is made of finished ones: comparisons, exports,
estimates.
"""
