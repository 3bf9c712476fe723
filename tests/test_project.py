"""The repository's own promises: what README says works, and the lists of dependencies agree."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.fast

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONDA_NAMES = {"torch": "pytorch", "dask": "dask-core", "geopandas": "geopandas-base", "matplotlib": "matplotlib-base"}
CONDA_NAMES |= {"opencv-python-headless": "opencv"}


def name_of(requirement: str) -> str:
    """`numpy>=2.0` -> `numpy`."""
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert found
    return found[0].lower().replace("_", "-")


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def test_readme_opens_with_two_commands_of_one_line_each() -> None:
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    demo, tests = (block.strip() for block in blocks[:2])
    assert "\n" not in demo
    assert "\n" not in tests
    assert demo.endswith("geoinfer demo")
    assert tests.endswith("pytest")


def test_each_requirement_has_a_tested_version_that_meets_it() -> None:
    extras = PROJECT["optional-dependencies"]
    wanted = [*PROJECT["dependencies"], *(r for name, extra in extras.items() if name != "zoo" for r in extra)]
    missing = [requirement for requirement in wanted if name_of(requirement) not in pins()]
    assert missing == []


def test_pins_are_plain_releases() -> None:
    assert pins()["torch"] == "2.13.0"
    assert not [version for version in pins().values() if "+" in version]
    assert not {"pip", "setuptools"} & pins().keys()


def test_conda_users_get_the_same_requirements() -> None:
    listed = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    conda = {entry for entry in listed if isinstance(entry, str)}
    for requirement in [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]:
        name = name_of(requirement)
        assert CONDA_NAMES.get(name, name) + requirement[len(name) :] in conda


@pytest.mark.parametrize(
    "page",
    [
        path.relative_to(ROOT).as_posix()
        for pattern in ("*.md", "docs/**/*.md", "examples/*.md")
        for path in ROOT.glob(pattern)
    ],
)
def test_links_lead_somewhere(page: str) -> None:
    links = re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", (ROOT / page).read_text())
    broken = [link for link in links if "://" not in link and not ((ROOT / page).parent / link).exists()]
    assert broken == []
