"""Prices of what a pipeline runs on, for `plan` to say what it will cost. They change nothing that is made."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class PricesConfig(BaseModel):
    """Of an hour; where one is not given, that part of the cost is left out, and without any no cost is told."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)
    cpu_hour: float | None = Field(None, ge=0)
    """One CPU's. Where a GPU's price has its machine's CPUs in it: none."""
    gpu_hour: float | None = Field(None, ge=0)
    """One GPU's."""
    currency: str = Field("USD", min_length=1)
    """What the prices are in, as it is printed."""

    def cost(self, cpu_hours: float | None, gpu_hours: float | None) -> float | None:
        """Of so many hours; None where nothing of it has a price."""
        parts = [
            hours * price
            for hours, price in ((cpu_hours, self.cpu_hour), (gpu_hours, self.gpu_hour))
            if hours is not None and price is not None
        ]
        return sum(parts) if parts else None
