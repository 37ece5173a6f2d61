"""Discrete diffusion with uniform noise as an objective of OmniLoom: its row of the table. Every plan imports this
module, so torch is imported by `uniform_module` alone, when a model is trained or draws.
"""

from omniloom.models.unified.representations import REPRESENTATIONS, VisualObjective

ROW = VisualObjective(
    "uniform_code",
    REPRESENTATIONS["codes"],
    stream=16,
    loss="uniform_module:UniformCodeLoss",
    draw="uniform_module:denoise",
    separable=True,
)
