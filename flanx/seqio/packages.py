"""SeqIO and TensorFlow for the modules of this package. Where they are not installed, importing one of these modules
raises the UserError below: flanx imports them when a user's task or a SeqIO program needs them, and never before."""

from flanx.errors import UserError

try:
    import seqio
    import tensorflow as tf
except ImportError as error:
    raise UserError(
        f"SeqIO tasks need SeqIO and TensorFlow ({error}): pip install 'seqio>=0.0.20' tensorflow"
    ) from error

__all__ = ["seqio", "tf"]
