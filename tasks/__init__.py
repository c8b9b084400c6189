"""Every task of the tables, under its name in SeqIO's registries.

`import flanx.tasks` is all that a SeqIO or T5X program needs; no data set, file of rows or network is touched by it.
After a plain `import flanx`, `flanx.tasks` is `flanx.task_api`, without SeqIO; this module has all that is there.
"""

from flanx import task_api
from flanx.seqio.tasks import register_all

register_all()


def __getattr__(name: str) -> object:
    """`flanx.tasks.store_mixture`, a mixture over a token store as one SeqIO task; `list`, `show`, `add`."""
    return getattr(task_api, name)
