"""``python -m modelwright``: the command line."""

from modelwright.cli.main import main

if __name__ == "__main__":  # a process that multiprocessing spawns imports this file too
    main()
