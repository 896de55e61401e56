"""`python -m proxy.cli` is the command `breakeven`."""

from proxy.cli import main

main()
