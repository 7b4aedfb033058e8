"""A server that any OpenAI client can talk to, whose models are the conditions of one model."""
