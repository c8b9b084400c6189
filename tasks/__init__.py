"""Every task of the tables, under its name in SeqIO's registries.

`import flanx.tasks` is all that a SeqIO or T5X program needs; no data set, file of rows or network is touched by it.
"""

from flanx.data.register import register_all

register_all()
