"""A distribution's own kernel in a virtual machine, with this machine's files: for what the kernel here is without."""
