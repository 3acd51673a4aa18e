"""The tutorials as notebooks."""

import json
import subprocess
import sys

import pages


def test_notebooks_have_the_code_of_the_pages(tmp_path):
    command = [sys.executable, "-P", str(pages.ROOT / "docs/notebooks.py"), str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True)
    tutorials = [p for p in (pages.ROOT / "docs/tutorials").glob("*.md") if p.name != "index.md"]
    assert {p.stem for p in tmp_path.iterdir()} == {p.stem for p in tutorials}
    for page in tutorials:
        made = json.loads((tmp_path / f"{page.stem}.ipynb").read_text(encoding="utf-8"))
        assert (made["nbformat"], made["nbformat_minor"]) == (4, 5)
        code = [each["source"] for each in made["cells"] if each["cell_type"] == "code"]
        assert code == [block.strip("\n") for block, _ in pages.blocks(page)]
        text = "".join(each["source"] for each in made["cells"] if each["cell_type"] == "markdown")
        assert "```python" not in text and "{toctree}" not in text
        assert len({each["id"] for each in made["cells"]}) == len(made["cells"])
