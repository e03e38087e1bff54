"""acfuse over networks that others published: `make zoo`.

`models` lists and builds them, `trial` tries one, `pages` writes docs/models.md and
docs/verdicts.md.
"""
