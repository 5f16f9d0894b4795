"""`python -m idefics_cli`."""

from idefics_cli.cli.app import main

if __name__ == "__main__":
    main()
