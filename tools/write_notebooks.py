"""Write examples/*.ipynb: each notebook is made from the Python file of the same name.

  python tools/write_notebooks.py

The file has cells: text after a line `# %% [markdown]`, code after a line `# %%`.
`tests/test_notebooks.py` compares the notebooks with the files.
"""

import json
import re
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "examples"
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def notebook(text: str) -> str:
    """The notebook of a file's text, without outputs."""
    cells = []
    _, *parts = re.split(r"^# %%( \[markdown\])?\n", text, flags=re.MULTILINE)
    for number, (kind, part) in enumerate(zip(parts[::2], parts[1::2], strict=True)):
        source = re.sub(r"^# ?", "", part, flags=re.MULTILINE) if kind else part
        cell = {"cell_type": "markdown" if kind else "code", "id": f"cell-{number}", "metadata": {}}
        if not kind:
            cell |= {"execution_count": None, "outputs": []}
        cells.append(cell | {"source": source.strip("\n").splitlines(keepends=True)})
    whole = {"cells": cells, "metadata": METADATA, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    for file in sorted(FOLDER.glob("*.py")):
        target = file.with_suffix(".ipynb")
        target.write_text(notebook(file.read_text(encoding="utf-8")), encoding="utf-8")
        print(f"Written: {target}")
