"""`python -m latcodec`, and the console script: an interrupt is one line from the first import on."""

import sys


def main() -> None:
    """Run the command line; exit code 130 if interrupted."""
    try:
        from latcodec import runtime as allocator
        from latcodec.cli import main as cli

        allocator.keep_freed_memory()
        cli.main()
    except KeyboardInterrupt:
        print("latcodec: interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
