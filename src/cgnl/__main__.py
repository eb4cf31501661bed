"""``python -m cgnl`` is the ``cgnl`` command."""

from cgnl.cli import main

if __name__ == "__main__":
    main()
