"""Run the notebooks of examples/ and write what they show to docs/notebooks/: `python docs/render.py [NAME...]`.

Needs the extra `docs`. They are run without GEOINFER_DATA, on generated scenes: no page can hold imagery that may not be
passed on. Each page begins with the digest of the notebook's cells: tests/test_notebooks.py sees one that is out of date.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES, PAGES = ROOT / "examples", ROOT / "docs" / "notebooks"
COLOURS = 256
"""Of a picture: maps of noisy imagery take a quarter of the bytes."""


def digest(notebook: dict[str, Any]) -> str:
    """Of the kinds and texts of a notebook's cells, as its file holds them."""
    cells = [[cell["cell_type"], "".join(cell["source"])] for cell in notebook["cells"]]
    return hashlib.sha256(json.dumps(cells).encode()).hexdigest()


def render(path: Path) -> None:
    """Run a notebook; write NAME.md and NAME_1.png, NAME_2.png and so on.

    Raises:
        CellExecutionError: A cell fails.
        ValueError: A cell says something on stderr, such as a warning: a page shows none.
    """
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": EXAMPLES}}).execute()
    for picture in PAGES.glob(f"{path.stem}_*.png"):
        picture.unlink()
    parts = [f"<!-- cells: {digest(json.loads(path.read_text()))}; made by docs/render.py -->"]
    pictures = 0
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
            continue
        parts.append(f"```python\n{cell.source}\n```")
        for kind, shown in _outputs(cell):
            if kind == "picture":
                pictures += 1
                name = f"{path.stem}_{pictures}.png"
                (PAGES / name).write_bytes(_smaller(base64.b64decode(shown)))
                shown = f"![Picture {pictures}]({name})"
            parts.append(shown)
    page = "\n\n".join(parts) + f"\n\n*The notebook: [examples/{path.name}](../../examples/{path.name}).*\n"
    (PAGES / f"{path.stem}.md").write_text(page, encoding="utf-8")


def _outputs(cell: Any) -> Iterator[tuple[str, str]]:
    """Kind (text or picture) and content of what a cell showed: Markdown, or base64 of a PNG."""
    for output in cell.outputs:
        if output.output_type == "stream":
            if output.name == "stderr":
                raise ValueError(f"a cell wrote to stderr: {output.text.strip()}")
            yield "text", f"```text\n{output.text.rstrip()}\n```"
        elif "image/png" in output.data:
            yield "picture", output.data["image/png"]
        elif "text/html" in output.data:  # a table; pandas puts a style before it
            yield "text", re.sub(r"<style.*?</style>\n?| border=\"1\"", "", output.data["text/html"], flags=re.DOTALL)
        else:
            yield "text", f"```text\n{output.data['text/plain']}\n```"


def _smaller(png: bytes) -> bytes:
    """The same picture in few colours. By octree: it keeps those of thin lines, which few pixels have."""
    from PIL import Image

    picture = Image.open(io.BytesIO(png)).convert("RGB")
    file = io.BytesIO()
    few = picture.quantize(COLOURS, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    few.save(file, "PNG", optimize=True)
    return file.getvalue()


def main(names: list[str]) -> None:
    """Render the notebooks whose file names begin with one of these; all of them without any."""
    os.environ.pop("GEOINFER_DATA", None)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    PAGES.mkdir(exist_ok=True)
    for path in sorted(EXAMPLES.glob("*.ipynb")):
        if not names or path.stem.startswith(tuple(names)):
            render(path)


if __name__ == "__main__":
    main(sys.argv[1:])
