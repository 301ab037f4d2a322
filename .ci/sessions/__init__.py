"""The sessions of `noxfile.py`, by subject: to import this is to register them."""

from . import behind, builds, kernels, kit, libraries, package, speed, users

__all__ = ["behind", "builds", "kernels", "kit", "libraries", "package", "speed", "users"]
