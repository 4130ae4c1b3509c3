"""`python -m riftcli`: what torchrun starts."""

from riftcli.cli import main

if __name__ == "__main__":
    main()
