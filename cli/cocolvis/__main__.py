"""``python -m cli.cocolvis``."""

from cli.cocolvis import main

if __name__ == "__main__":
    main()
