"""SeqIO and TensorFlow for the modules of this package. If they are not installed, importing one of those modules
raises the UserError below: flanx imports them only when a user's task or a SeqIO program needs them."""

from flanx.errors import UserError

try:
    import seqio
    import tensorflow as tf
except ImportError as error:
    raise UserError(
        f"SeqIO tasks need SeqIO and TensorFlow ({error}): pip install 'seqio>=0.0.20' tensorflow"
    ) from error

__all__ = ["seqio", "tf"]
