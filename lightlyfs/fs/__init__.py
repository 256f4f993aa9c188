"""Defines what paths, handles and attributes mean; must not know FUSE types or HTTP."""
