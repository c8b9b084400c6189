"""Every task of the tables, under its name in SeqIO's registries.

`import flanx.tasks` is all that a SeqIO or T5X program needs; no data set, file of rows or network is touched by it.
"""

from flanx.seqio.tasks import register_all

register_all()


def __getattr__(name: str) -> object:
    """`flanx.tasks.store_mixture`: a mixture over a token store as one SeqIO task; imported when asked for."""
    if name == "store_mixture":
        from flanx.seqio.store_task import store_mixture  # noqa: PLC0415  (packing starts when asked for)

        return store_mixture
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
