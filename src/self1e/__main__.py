"""``python -m self1e``: the same as the command ``self1e``."""

from self1e.cli.main import main

if __name__ == "__main__":
    main()
