"""What every room uses: errors, files, progress, the command line, settings of the host."""
