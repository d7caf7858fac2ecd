"""The command line as ``python -m ntkdist.cli``."""

from ntkdist.cli import main

main()
