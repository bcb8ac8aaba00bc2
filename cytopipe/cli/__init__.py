"""The command line: one file a command, shared options in `options`, all that is shown in `console`."""
