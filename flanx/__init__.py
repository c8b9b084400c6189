"""flanx: scaling instruction-finetuned language models in JAX, from one device to a pod."""

__version__ = "0.2.0.dev0"
