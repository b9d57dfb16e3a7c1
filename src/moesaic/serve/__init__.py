"""How it answers: local models in a terminal and in Python."""
