"""A model that lmms-eval runs. In: a model. Out: a folder with the Hugging Face repository `model/` and the package
`omniloom_lmms`, a plugin of lmms-eval (LMMS_EVAL_PLUGINS), which loads it; the README says how."""

from __future__ import annotations

import shutil
from pathlib import Path

from omniloom.pipelines.exporting import hf
from omniloom.pipelines.exporting.models import Exported

PLUGIN = "omniloom_lmms"
WRAPPER = Path(__file__).with_name("lmms_eval_model.py")

README = """# {title} in lmms-eval

With lmms-eval, torch and safetensors installed, from this folder:

    PYTHONPATH=. LMMS_EVAL_PLUGINS={plugin} python -m lmms_eval --model omniloom --force_simple \\
        --model_args pretrained=model --tasks mme --batch_size 1 --log_samples --output_path results

`--model_args pretrained=model,device=cuda` runs on a GPU. `generate_until` describes and answers, with the pictures of
a task before its text; `loglikelihood` scores choices.
"""


def export(model: Exported, folder: Path) -> None:
    hf.export(model, folder / "model")
    models = folder / PLUGIN / "models"
    models.mkdir(parents=True)
    (folder / PLUGIN / "__init__.py").write_text("", encoding="utf-8")
    (models / "__init__.py").write_text('AVAILABLE_MODELS = {"omniloom": "OmniLoom"}\n', encoding="utf-8")
    shutil.copyfile(WRAPPER, models / "omniloom.py")
    (folder / "README.md").write_text(README.format(title=model.title, plugin=PLUGIN), encoding="utf-8")
