"""Every recipe of docs/guide/recipes.md runs as it is printed, and prints what its comments say."""

import re
from pathlib import Path

import pytest

RECIPES_PAGE = Path(__file__).parent.parent / "docs/guide/recipes.md"
PYTHON_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# print(...)  # what it prints; dots stand for anything
PRINTED = re.compile(r"^print\(.*\)  # (.+)$", re.MULTILINE)


def read_recipes(text: str) -> dict[str, str]:
    """Heading -> the python blocks below it, as one program."""
    _, *sections = re.split(r"^## (.+)$", text, flags=re.MULTILINE)
    return {
        heading: "\n".join(PYTHON_BLOCK.findall(body)) for heading, body in zip(sections[::2], sections[1::2], strict=True)
    }


RECIPES = read_recipes(RECIPES_PAGE.read_text())


def test_every_recipe_has_a_program():
    assert len(RECIPES) >= 11
    assert [heading for heading, program in RECIPES.items() if not program] == []


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("heading", RECIPES)
def test_recipe_runs_as_printed(heading, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(compile(RECIPES[heading], f"recipe: {heading}", "exec"), {"__name__": "__main__"})
    output = capsys.readouterr().out
    for printed in PRINTED.findall(RECIPES[heading]):
        assert re.search(re.escape(printed).replace(r"\.\.\.", ".*"), output), f"{printed!r} is not in {output!r}"
