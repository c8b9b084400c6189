"""The commands of the program `flanx`."""

from flanx.cli import interrupt

interrupt.defer()  # before anything else is imported
