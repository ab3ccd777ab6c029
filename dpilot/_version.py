"""dpilot's version: the one place where it is written (pyproject.toml reads it from here)."""

version = "0.1.0.dev0"
