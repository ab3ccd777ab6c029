"""Notebooks, each of which teaches one thing. ``python -m notebooks`` runs them and writes down what they show."""
