"""The repository itself: its imports, its pages, and how its tests are written."""
