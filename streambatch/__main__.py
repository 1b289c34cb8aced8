"""`python -m streambatch`: the command line."""

from streambatch.cli import main

if __name__ == "__main__":
    main()
