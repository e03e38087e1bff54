"""A conversion as a file: HTML to look at, Markdown for a review, JSON, and JUnit for a CI job.

`record` says what a report holds, `measure` looks at the kernels while they are at hand, and
`render` chooses the writer by the suffix.
"""
