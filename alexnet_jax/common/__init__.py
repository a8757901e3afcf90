"""Shared by all of the package: errors, files, progress bars, the command line, process settings."""
