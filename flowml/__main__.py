"""``python -m flowml``: the command line."""

from __future__ import annotations

from flowml.cli import main

if __name__ == "__main__":
    main(prog_name="flowml")
