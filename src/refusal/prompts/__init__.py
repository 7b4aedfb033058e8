"""Where prompts come from: the built-in ones, files, public sets; splits without leaks and
near-duplicates.
"""
