"""The edge to the kernel: FUSE libraries, their callbacks, errno."""
