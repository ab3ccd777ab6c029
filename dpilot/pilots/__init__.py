"""Launchers: how the workers of a pilot get onto a machine."""
