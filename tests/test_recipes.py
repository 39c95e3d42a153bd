"""The documentation is true: recipes run as they are printed, programs are Python, every logged key is explained."""

import ast
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

import safe_envs
import sb3_cpo
from sb3_cpo.on_policy_algorithm import ConstrainedOnPolicyAlgorithm

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


# Pages whose programs are complete: a block of the README stands alone, those of a page follow each other
STARTS = {
    **{f"README, {index}": [block] for index, block in enumerate(PYTHON_BLOCK.findall((ROOT / "README.md").read_text()))},
    **{page: PYTHON_BLOCK.findall((ROOT / "docs" / page).read_text()) for page in ("index.md", "guide/quickstart.md")},
}


@pytest.mark.parametrize("name", STARTS)
def test_first_programs_run_as_pasted(name, tmp_path, monkeypatch, capsys):
    """As they stand, imports included; only training and evaluation are cut short."""
    learn = ConstrainedOnPolicyAlgorithm.learn
    rollouts = []

    def learn_shortly(model, total_timesteps=1, **kwargs):
        assert total_timesteps >= 1_000
        rollouts.append(model.n_steps)
        return learn(model, 1, **kwargs)

    monkeypatch.setattr(ConstrainedOnPolicyAlgorithm, "learn", learn_shortly)
    monkeypatch.setattr("sb3_cpo.defaults.default_n_steps", lambda n_envs, max_episode_steps: 20)
    monkeypatch.chdir(tmp_path)
    programs = [re.sub(r"n_eval_episodes=\d+", "n_eval_episodes=1", program) for program in STARTS[name]]
    namespace = {"__name__": "__main__"}
    for program in programs:
        exec(compile(program, name, "exec"), namespace)
    assert rollouts
    assert "cost" in capsys.readouterr().out or "README" in name


# Pages with whole programs, whose blocks follow each other; the others show parts of programs
PROGRAMS = [
    *("environments.md", "theory.md"),
    *(f"algorithms/{name}.md" for name in ("cost-shaping", "cpo", "fpo", "pdo", "trpo")),
    *(
        f"guide/{name}.md"
        for name in (
            *("callbacks", "choosing-limits", "distributed", "evaluation", "logging", "own-environment", "safety-report"),
            "saving-and-resuming",
        )
    ),
]


@pytest.mark.parametrize("page", PROGRAMS)
def test_programs_of_a_page_run(page, tmp_path, monkeypatch):
    """One after the other as they stand; only training, evaluations and reports are cut short."""
    if page == "guide/safety-report.md":
        # Its model card: the extra "report"
        pytest.importorskip("huggingface_hub")
    learn = ConstrainedOnPolicyAlgorithm.learn
    monkeypatch.setattr(ConstrainedOnPolicyAlgorithm, "learn", lambda model, *_, **kwargs: learn(model, 1, **kwargs))
    monkeypatch.setattr("sb3_cpo.defaults.default_n_steps", lambda n_envs, max_episode_steps: 20)
    monkeypatch.chdir(tmp_path)
    # What torchrun sets; any free port
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}.items():
        monkeypatch.setenv(name, value)
    namespace = {"__name__": "a_test"}
    shorter = {
        r"n_eval_episodes=\d+": "n_eval_episodes=1",
        r"eval_freq=[\d_]+": "eval_freq=10",
        ", 500,": ", 5,",
        "seed=1000351": "seed=1",
    }
    for program in PYTHON_BLOCK.findall((ROOT / "docs" / page).read_text()):
        imported = {name.partition(".")[0] for name in re.findall(r"^import (\S+)", program, flags=re.MULTILINE)}
        if all(find_spec(name) is not None for name in imported):
            for long, short in shorter.items():
                program = re.sub(long, short, program)
            exec(compile(program, page, "exec"), namespace)


def test_the_readme_shows_how_to_begin():
    first, own = PYTHON_BLOCK.findall((ROOT / "README.md").read_text())[:2]
    assert "import" in first.splitlines()[0]
    assert len(own.strip().splitlines()) <= 10


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_programs_are_python(page):
    for program in PYTHON_BLOCK.findall(page.read_text()):
        ast.parse(program)


@pytest.mark.parametrize(
    "page", [page for page in PAGES if "results" not in page.parts], ids=lambda page: str(page.relative_to(ROOT))
)
def test_what_a_page_uses_of_the_packages_it_imports(page):
    known = {*sb3_cpo.__all__, *safe_envs.__all__, "gym", "np", "th"}
    nodes = [node for program in PYTHON_BLOCK.findall(page.read_text()) for node in ast.walk(ast.parse(program))]
    imported = {
        alias.asname or alias.name for node in nodes if isinstance(node, ast.Import | ast.ImportFrom) for alias in node.names
    }
    used = {node.id for node in nodes if isinstance(node, ast.Name)}
    assert (used & known) - imported == set()


def test_every_logged_key_is_explained():
    keys = set(LOGGED_KEY.findall((ROOT / "sb3_cpo" / "log_keys.py").read_text()))
    assert len(keys) > 30
    explained = "".join(page.read_text() for page in PAGES)
    # A key that continues with a variable part, such as train/n_rejected_{reason}
    assert [key for key in sorted(keys) if f"`{key}" not in explained and f"`{key.split('/')[1]}" not in explained] == []
