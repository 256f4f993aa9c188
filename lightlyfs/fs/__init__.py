"""What paths, handles and attributes mean; free of FUSE types and of HTTP."""
