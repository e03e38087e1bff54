"""A small project of one's own for each test, as the working directory."""

import pytest

from tests.cli.project import make_project


@pytest.fixture
def project(tmp_path, monkeypatch):
    folder = make_project(tmp_path / "project")
    monkeypatch.chdir(folder)
    return folder
