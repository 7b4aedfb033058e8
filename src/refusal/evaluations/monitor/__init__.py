"""A monitor evaluated: what it finds, its false alarms, and whether its scores drift."""
