"""The token store. The package exports the read side (numpy only); its modules build and describe stores."""

from flanx.data.store.format import (
    FORMAT,
    INDEX,
    MANIFEST,
    RESIDENT_BYTES,
    VERSION,
    VOLUME_BYTES,
    Part,
    Store,
    Task,
    Volume,
    content_hash,
    open_store,
    read_manifest,
    sha256,
    verify,
)

__all__ = [
    "FORMAT",
    "INDEX",
    "MANIFEST",
    "RESIDENT_BYTES",
    "VERSION",
    "VOLUME_BYTES",
    "Part",
    "Store",
    "Task",
    "Volume",
    "content_hash",
    "open_store",
    "read_manifest",
    "sha256",
    "verify",
]
