"""`python -m lightlyfs` is the same as `lightlyfs`."""

from lightlyfs.cli import main

main()
