"""Files that strangers made, and writes that fail: nothing runs, nothing is lost."""
