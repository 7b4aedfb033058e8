"""A monitor of prompts: fitted, calibrated, read in a pass of its own or in any other."""
