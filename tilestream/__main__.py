"""`python -m tilestream`."""

from tilestream.cli import main

if __name__ == "__main__":
    main()
