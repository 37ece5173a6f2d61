"""Whether Ray's workers find the extensions that a pipeline uses where this process does, or the same ones elsewhere.

In: a config; the Ray that this process is connected to. Out: nothing, or an InputError that names both places.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from omniloom.infra import nodes
from omniloom.infra.errors import InputError, together
from omniloom.models import extensions
from omniloom.models.tokenizer.quantizers import kinds as quantizers
from omniloom.models.unified import representations
from omniloom.pipelines import extensions as stages
from omniloom.pipelines.config import PipelineConfig
from omniloom.stages.curate.steps import table as curation
from omniloom.stages.ingest.kinds import table as sources

GROUPS = (stages.GROUP, sources.GROUP, curation.GROUP, quantizers.GROUP, representations.GROUP)


def check(config: PipelineConfig) -> None:
    """InputError where a worker on some node would take other code than this process, or none, for an extension."""
    modules = extensions.modules_of(GROUPS, set(_texts(config.stages.model_dump())))
    here = extensions.located(modules)
    errors = [
        InputError(
            f"{module} of the distribution {modules[module]} is {here[module][0]} here, and {place} in Ray's workers "
            f"on {host}; install the same distribution there, and leave no folder or module of that name before it on "
            "their path"
        )
        for host, there in (nodes.ask_each(extensions.located, list(modules)) if modules else ())
        for module, (place, digest) in there.items()
        if digest != here[module][1]
    ]
    if errors:
        raise together(errors)


def _texts(value: Any) -> Iterator[str]:
    """All keys and texts: an extension is named by one of them."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from value
        yield from _texts(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)
