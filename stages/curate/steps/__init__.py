"""Steps of curation: one module each behind `base.Step`; the table of them is in `table.py`."""

from omniloom.stages.curate.steps.base import Comparison, Filter, Step, StepConfig

__all__ = ["Comparison", "Filter", "Step", "StepConfig"]
