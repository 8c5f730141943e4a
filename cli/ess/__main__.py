"""``python -m cli.ess``."""

from cli.ess import main

if __name__ == "__main__":
    main()
