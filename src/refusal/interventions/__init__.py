"""What is done to the residual stream while the model runs, and the conditions named after it."""
