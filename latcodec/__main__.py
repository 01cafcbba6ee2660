"""`python -m latcodec`, and the console script."""

import sys


def main() -> None:
    """Run the command line; an interrupt is one line and exit code 130, even while modules are still imported."""
    try:
        from latcodec import runtime
        from latcodec.cli import main as command_line

        runtime.keep_freed_memory()
        command_line.main()
    except KeyboardInterrupt:
        print("latcodec: interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
