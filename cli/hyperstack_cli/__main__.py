"""`python -m hyperstack_cli` is `hyperstack`."""

from hyperstack_cli.main import main

if __name__ == "__main__":
    main()
