"""`python -m vidalign.cli`, for launchers that start a module."""

from vidalign.cli import process

if __name__ == "__main__":
    process()
