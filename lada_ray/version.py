"""The version of the package; part of every task pack."""

__version__ = "0.1.0"
