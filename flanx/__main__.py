"""`python -m flanx` is the program `flanx`."""

import sys

from flanx.cli import main

sys.exit(main())
