"""What the machine does for a program: files on a disk."""
