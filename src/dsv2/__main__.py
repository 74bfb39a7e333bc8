"""``python -m dsv2`` is the program ``dsv2``."""

from dsv2.cli.main import main

if __name__ == "__main__":
    main()
