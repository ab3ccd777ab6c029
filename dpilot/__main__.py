"""``python -m dpilot`` is the command ``dpilot``."""

from dpilot.cli import main

if __name__ == "__main__":
    main(prog_name="dpilot")
