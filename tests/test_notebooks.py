"""The notebooks of examples/: they run, use the public API alone, hold no outputs, and their pages are up to date."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import geoinfer as gi
from docs.render import EXAMPLES, PAGES, digest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))
PAGES_BYTES = 2_000_000
"""Most that all pages and their pictures may take."""

each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def content(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def code_of(path: Path) -> str:
    cells = [cell for cell in content(path)["cells"] if cell["cell_type"] == "code"]
    return "\n".join("".join(cell["source"]) for cell in cells)


def run(path: Path, folder: Path, **settings: str) -> None:
    """Run a notebook by nbmake, in a process of its own, with its temporary files in `folder`."""
    environment = {name: value for name, value in os.environ.items() if name != "GEOINFER_DATA"}
    environment |= {"PYTHONPATH": str(ROOT), "IPYTHONDIR": str(folder / "ipython"), "TMPDIR": str(folder)}
    environment |= {"JUPYTER_RUNTIME_DIR": str(folder / "jupyter"), **settings}
    command = [sys.executable, "-m", "pytest", "--nbmake", "-p", "no:cacheprovider", "--timeout=600", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


@each
def test_a_notebook_runs_on_generated_data(path: Path, tmp_path: Path) -> None:
    run(path, tmp_path)


@pytest.mark.realdata
@pytest.mark.timeout(900)
@each
def test_a_notebook_runs_on_real_imagery(path: Path, tmp_path: Path, data_folder: Path) -> None:
    run(path, tmp_path, GEOINFER_DATA=str(data_folder))


def test_there_are_notebooks() -> None:
    assert [path.stem[:2] for path in NOTEBOOKS] == ["01", "02", "03", "04", "05"]


@pytest.mark.fast
@each
def test_a_notebook_uses_the_public_api_only(path: Path) -> None:
    code = ast.parse(code_of(path))
    imported = [alias.name for node in ast.walk(code) if isinstance(node, ast.Import) for alias in node.names]
    imported += [node.module or "" for node in ast.walk(code) if isinstance(node, ast.ImportFrom)]
    assert [name for name in imported if name.split(".")[0] == "geoinfer"] == ["geoinfer"]
    attributes = [node for node in ast.walk(code) if isinstance(node, ast.Attribute)]
    used = {node.attr for node in attributes if isinstance(node.value, ast.Name) and node.value.id == "gi"}
    assert used
    assert used <= set(gi.__all__)
    assert not [node.attr for node in attributes if node.attr.startswith("_")]


@pytest.mark.fast
@each
def test_a_notebook_holds_no_outputs(path: Path) -> None:
    cells = content(path)["cells"]
    assert not [cell for cell in cells if cell.get("outputs") or cell.get("execution_count")]


@pytest.mark.fast
@each
def test_a_page_shows_the_notebook_as_it_is(path: Path) -> None:
    page = (PAGES / f"{path.stem}.md").read_text(encoding="utf-8")
    assert page.startswith(f"<!-- cells: {digest(content(path))};"), "run python docs/render.py"
    shown = re.findall(r"^```text\n(Imagery: .*)\n```$", page, re.MULTILINE)
    assert shown == ["Imagery: a generated scene"]  # pages hold no imagery that may not be passed on


@pytest.mark.fast
def test_pages_have_their_pictures_and_are_small() -> None:
    shown = {name for page in PAGES.glob("*.md") for name in re.findall(r"\]\(([^/)]+\.png)\)", page.read_text())}
    assert shown == {path.name for path in PAGES.glob("*.png")}
    assert {path.stem for path in PAGES.glob("*.md")} == {"README", *(path.stem for path in NOTEBOOKS)}
    assert sum(path.stat().st_size for path in PAGES.iterdir()) < PAGES_BYTES


@pytest.mark.fast
@pytest.mark.parametrize("page", [EXAMPLES / "README.md", PAGES / "README.md"], ids=["examples", "docs"])
def test_every_notebook_is_listed(page: Path) -> None:
    assert [path.stem for path in NOTEBOOKS if path.stem not in page.read_text()] == []
