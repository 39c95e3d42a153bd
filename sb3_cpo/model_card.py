"""A model card for the Hugging Face Hub, from a safety report (extra: report)."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sb3_cpo.report_rendering import save, to_markdown, verdict_text

if TYPE_CHECKING:
    from sb3_cpo.safety_report import SafetyReport

USAGE = """\
## Usage

```python
from huggingface_sb3 import load_from_hub

from sb3_cpo import {algorithm}

model = {algorithm}.load(load_from_hub("user/{name}", "{filename}"))
```

In a clone of sb3-cpo, `pip install -e ".[report]"` brings both packages. Loading a model runs code that its file contains:
only load files that you trust. What its episodes cost, and with which confidence, is below; the numbers behind it are in
`report.json`.
"""

NO_MODEL = """\
The model is not in this folder: `safety_report(..., model_path=...)` puts it there. What its episodes cost, and with which
confidence, is below; the numbers behind it are in `report.json`.
"""


def save_model_card(report: "SafetyReport", folder: Path, license: str | None) -> Path:
    """The report's files, ``README.md`` with the metadata that the Hub reads, and the model under the SB3 team's name."""
    try:
        from huggingface_hub import EvalResult, ModelCard, ModelCardData
        from huggingface_sb3 import EnvironmentName, ModelName
    except ImportError as error:
        from sb3_cpo.safety_report import INSTALL

        raise ImportError(INSTALL.format("save_model_card", error)) from error

    save(report, folder)
    name = ModelName(report.algorithm.lower(), EnvironmentName(report.env_id))
    if report.model_path is not None:
        shutil.copyfile(report.model_path, folder / name.filename)
    first = report.policies[0]
    dataset: dict[str, Any] = {"dataset_type": report.env_id, "dataset_name": report.env_id}
    task: dict[str, Any] = {"task_type": "reinforcement-learning", "task_name": "reinforcement-learning"}
    values = {
        "mean_reward": f"{np.mean(first.returns):.2f} +/- {np.std(first.returns):.2f}",
        **{
            f"mean_episode_{one.name}": f"{one.mean:.4g} (at most {one.upper:.4g} with confidence {1 - report.alpha:.0%}, "
            f"limit {one.limit:g}: {verdict_text(one)})"
            for one in first.constraints
        },
    }
    results = [
        EvalResult(metric_type=key, metric_name=key, metric_value=value, **task, **dataset) for key, value in values.items()
    ]
    data = ModelCardData(
        model_name=report.algorithm,
        library_name="stable-baselines3",
        license=license,
        tags=[
            report.env_id,
            "deep-reinforcement-learning",
            "reinforcement-learning",
            "stable-baselines3",
            "safe-rl",
            "sb3-cpo",
        ],
        eval_results=results,
    )
    template = USAGE if report.model_path is not None else NO_MODEL
    usage = template.format(algorithm=report.algorithm, name=name, filename=name.filename)
    text = f"# {report.algorithm} agent playing {report.env_id}\n\n{usage}\n{to_markdown(report, '##')}"
    ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}").save(folder / "README.md")
    return folder
