"""Prints the lowest versions that pyproject.toml allows, as constraints for pip."""

import tomllib
from pathlib import Path

with (Path(__file__).parents[1] / "pyproject.toml").open("rb") as file:
    project = tomllib.load(file)["project"]
extras = project["optional-dependencies"]
for requirement in (*project["dependencies"], *extras["hdf5"], *extras["samples"]):
    print(requirement.replace(">=", "=="))
