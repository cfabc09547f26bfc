"""``python -m modelwright``, and the command ``modelwright``: the command line."""

import sys


def main() -> None:
    """Run it; Ctrl-C while it is still being imported ends it as later, without a traceback."""
    try:
        from modelwright.cli.main import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":  # a process that multiprocessing spawns imports this file too
    main()
