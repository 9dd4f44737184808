"""`python -m vidalign.cli`, for launchers that start a module."""

from vidalign.cli import main

if __name__ == "__main__":
    main()
