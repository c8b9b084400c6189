"""`python -m flanx` is the program `flanx`."""

from flanx.cli import entry

entry()
