"""The documentation is true: recipes run as they are printed, programs are Python, every logged key is explained."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs").glob("[!_]*/*.md"))]
PYTHON_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LOGGED_KEY = re.compile(r'"((?:train|rollout|safety|eval)/\w+)"')
# print(...)  # what it prints; dots stand for anything
PRINTED = re.compile(r"^print\(.*\)  # (.+)$", re.MULTILINE)


def read_recipes(text: str) -> dict[str, str]:
    """Heading -> the python blocks below it, as one program."""
    _, *sections = re.split(r"^## (.+)$", text, flags=re.MULTILINE)
    return {
        heading: "\n".join(PYTHON_BLOCK.findall(body)) for heading, body in zip(sections[::2], sections[1::2], strict=True)
    }


RECIPES = read_recipes((ROOT / "docs/guide/recipes.md").read_text())


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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_programs_are_python(page):
    for program in PYTHON_BLOCK.findall(page.read_text()):
        ast.parse(program)


def test_every_logged_key_is_explained():
    keys = set(LOGGED_KEY.findall((ROOT / "sb3_cpo" / "log_keys.py").read_text()))
    assert len(keys) > 30
    explained = "".join(page.read_text() for page in PAGES)
    # A key that continues with a variable part, such as train/n_rejected_{reason}
    assert [key for key in sorted(keys) if f"`{key}" not in explained and f"`{key.split('/')[1]}" not in explained] == []
