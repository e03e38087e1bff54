"""What a conversion does, from a file to files."""
