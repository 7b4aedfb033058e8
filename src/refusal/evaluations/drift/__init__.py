"""How far an intervention moves what the model does otherwise, on texts that it is led along."""
