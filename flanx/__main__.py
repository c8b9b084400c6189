"""`python -m flanx` is the program `flanx`."""

from flanx.cli.main import entry

entry()
