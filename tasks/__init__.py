"""Registers every task of the tables in SeqIO's registries under its name.

`import flanx.tasks` is all that a SeqIO or T5X program needs; it touches no data set, row file or network. After a
plain `import flanx`, `flanx.tasks` is `flanx.task_api`, without SeqIO; this module also has everything in that one.
"""

from flanx import task_api
from flanx.seqio.tasks import register_all

register_all()


def __getattr__(name: str) -> object:
    """`flanx.tasks.store_mixture`, a mixture over a token store as one SeqIO task; `list`, `show`, `add`."""
    return getattr(task_api, name)
