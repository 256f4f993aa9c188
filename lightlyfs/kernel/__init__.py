"""The interface to the kernel: FUSE libraries, their callbacks, errno."""
