"""One function a command: the Python API. A step joins rooms and does nothing else."""
