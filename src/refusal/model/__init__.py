"""A chat model as the rest sees it: loading, template, residual stream, passes, completions. Only
here: `.hf`.
"""
