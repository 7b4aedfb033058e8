"""Directions found in one context and used in another."""
