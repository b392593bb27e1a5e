"""``python -m flowturbo``: the command line."""

from flowturbo.cli import main

if __name__ == "__main__":
    main()
