"""Run the command line as `python -m anydepth`."""

from anydepth.cli import main

if __name__ == "__main__":
    main()
