"""Shared by the whole package: errors, files, progress bars, the command line, process settings."""
