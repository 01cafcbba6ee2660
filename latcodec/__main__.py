"""`python -m latcodec` is the command line."""

from latcodec.cli import main

if __name__ == "__main__":
    main()
