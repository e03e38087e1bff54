"""The tests: a folder for each topic, and helpers beside them that are no tests themselves."""
