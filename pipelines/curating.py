"""A dry run of curation: what its steps would leave out of the records that are there. No artifact is made."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable

from omniloom.infra import cluster, storage
from omniloom.infra.errors import InputError
from omniloom.pipelines import installed
from omniloom.pipelines.config import naming
from omniloom.pipelines.plan import Plan

STAGE = "curate"


def dry_run(plan: Plan, progress: Callable[[int, int, str], None]) -> dict:
    """{"records": how many there are, "left": {step: how many would go}, "html": the page}; as a run would find it, on
    the same Ray. A dry run that was killed goes on where it ended. InputError where the pipeline has no curation, or
    the records that it reads are not there."""
    if STAGE not in plan.graph.names:
        raise InputError("the pipeline has no such stage; give it steps", field=f"stages.{STAGE}")
    planned = plan[STAGE]
    before = plan[planned.inputs["records"]]
    if before.artifact is None or before.status != "cached":
        raise InputError(
            f"the records that {STAGE} reads are not there ({before.name}: {before.reason}); first run "
            f"--until {before.name}",
            field=f"stages.{STAGE}",
        )
    state = storage.join(plan.config.storage, "work", f"{STAGE}-dry-run", planned.fingerprint)
    connected = cluster.connect_to(plan.config.cluster)
    try:
        from omniloom.stages.curate.stage import curate

        installed.check(plan.config)
        logging.getLogger("ray.data").setLevel(logging.WARNING)  # this process is what a person looks at
        with naming(plan.config), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                found = curate(planned.config, before.artifact.uri, state, None, progress)
            except InputError as error:
                error.field = f"stages.{STAGE}" + (f".{error.field}" if error.field else "")
                raise
    finally:
        if connected.opened:
            cluster.shutdown()
    storage.remove(state)
    return found
