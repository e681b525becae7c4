"""`python -m sec` is the command `sec`."""

from sec.cli import main

if __name__ == "__main__":
    main()
