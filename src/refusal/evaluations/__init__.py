"""What an intervention does: refusal, over-refusal, drift, separation, seeds, capability, further
judges.
"""
