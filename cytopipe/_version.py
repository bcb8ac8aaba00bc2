"""The version, in one place; hatchling reads it when the wheel is built."""

__version__ = "0.1.0"
