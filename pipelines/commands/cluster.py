"""`submit`, `jobs`, `logs`, `stop`: runs as jobs of a Ray cluster."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from typing import Annotated

import typer

from omniloom.infra.retries import Retries
from omniloom.infra.secrets import redact
from omniloom.pipelines import signals
from omniloom.pipelines.commands.arguments import DASHBOARD, Address, AsJson, ConfigPath, Job, Overrides
from omniloom.pipelines.options import selection_options
from omniloom.pipelines.selection import Selection
from omniloom.stages.base import RETRIES

_DONE = ": done in "  # of a stage's last line


@selection_options
def submit(
    config: ConfigPath,
    overrides: Overrides = None,
    address: Address = DASHBOARD,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Print the job's id and return.")] = False,
    *,
    selection: Selection,
) -> None:
    """Run the pipeline as a job on a Ray cluster, and show its log.

    Ctrl-C while the log is shown leaves the job alone. A job whose process was killed is submitted again while this
    command waits for it.
    """
    from omniloom.pipelines import jobs as cluster_jobs
    from omniloom.pipelines.checks import check_stages
    from omniloom.pipelines.commands.arguments import planned
    from omniloom.pipelines.config import load

    # What is wrong fails here, not minutes later on the cluster; files of another machine are for the job to look at.
    here = cluster_jobs.on_this_machine(address)
    loaded = load(config, overrides or [], files=here)
    selection.stages(loaded.graph)
    if here:
        made = planned(config, overrides, selection)
        cluster_jobs.check_room(address, loaded, [stage.name for stage in made.to_execute])
    else:
        check_stages(loaded, files=False)
    retries, done = Retries(RETRIES, 0), 0
    while True:
        job = cluster_jobs.submit(config, overrides or [], address, arguments=selection.arguments())
        print(f"job {job}")
        print(f"follow it with: omniloom logs {job} -f --address {redact(address)}", flush=True)
        if no_wait:
            return
        try:
            for line in cluster_jobs.logs(address, job, follow=True):
                done += _DONE in line
                print(redact(line), flush=True)
            outcome = cluster_jobs.wait(address, job)
        except KeyboardInterrupt:
            print(f"job {job} goes on; end it with: omniloom stop {job} --address {redact(address)}", file=sys.stderr)
            sys.exit(signals.INTERRUPTED)
        if not outcome.killed or (pause := retries.failed(done)) is None:
            break
        print(
            f"job {job}: its process was killed, or its machine is gone; submitted again ({retries.told})", flush=True
        )
        time.sleep(pause)
    why = f": {redact(outcome.message)}" if outcome.status == "FAILED" else ""
    often = f", its process killed {retries.often}; the next submit goes on from here" if outcome.killed else ""
    print(f"job {job}: {outcome.status.lower()}{often}{why}")
    if outcome.status != "SUCCEEDED":
        raise typer.Exit(1)


def jobs(address: Address = DASHBOARD, as_json: AsJson = False) -> None:
    """List the cluster's jobs."""
    from omniloom.pipelines.jobs import jobs as list_jobs

    rows = redact([dataclasses.asdict(job) for job in list_jobs(address)])
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    from omniloom.pipelines.tables import jobs_table, show

    show(jobs_table(rows))


def logs(
    job: Job,
    address: Address = DASHBOARD,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job ends.")] = False,
) -> None:
    """Print a job's log."""
    from omniloom.pipelines.jobs import logs as read_logs

    try:
        for line in read_logs(address, job, follow=follow):
            print(redact(line), flush=True)
    except KeyboardInterrupt:  # the job goes on
        sys.exit(signals.INTERRUPTED)


def stop(job: Job, address: Address = DASHBOARD) -> None:
    """Stop a job.

    What its stages have finished so far is kept, and the next run goes on from there.
    """
    from omniloom.pipelines.jobs import stop as stop_job

    print(f"job {job}: {stop_job(address, job).status.lower()}")
