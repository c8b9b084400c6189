"""Runs the jobs of a store build as an Apache Beam pipeline, for builds that outgrow one machine (extra `beam`).

The pipeline runs the same jobs as worker processes do and writes the same shards; the launching process assembles the
store. So Beam workers need flanx installed, and a disk shared with that process that holds `STORE_DIR`.
"""

import dataclasses
import json
import pathlib
import tempfile
from collections.abc import Iterator, Sequence

from flanx.data.store.build_job import Job
from flanx.data.store.build_worker import Outcome, quiet_tensorflow, run_here
from flanx.errors import UserError


def run(jobs: Sequence[Job], options: Sequence[str] = ()) -> Iterator[Outcome]:
    """Runs jobs on a Beam runner, by default DirectRunner on this machine; yields outcomes when the pipeline is done.

    `options`: Beam's own command-line options, such as `--runner=FlinkRunner --parallelism=64`.
    """
    try:
        import apache_beam  # pyright: ignore[reportMissingImports]  # noqa: PLC0415  (an extra)
        from apache_beam.options.pipeline_options import (  # pyright: ignore[reportMissingImports]  # noqa: PLC0415
            PipelineOptions,
        )
    except ImportError as error:
        raise UserError("--runner=beam needs Apache Beam: `pip install 'flanx[beam]'`") from error
    by_name = {_name(job): job for job in jobs}
    folder = pathlib.Path(jobs[0].folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as results:
        with apache_beam.Pipeline(options=PipelineOptions(list(options))) as pipeline:
            _ = (
                pipeline
                | "jobs" >> apache_beam.Create([job.to_json() for job in jobs])
                | "spread" >> apache_beam.Reshuffle()
                | "render" >> apache_beam.Map(_run)
                | "outcomes" >> apache_beam.io.WriteToText(f"{results}/outcome")
            )
        for file in sorted(pathlib.Path(results).glob("outcome*")):
            for line in file.read_text(encoding="utf-8").splitlines():
                fields = json.loads(line)
                yield Outcome(by_name[fields.pop("job")], **fields)


def _name(job: Job) -> str:
    return json.dumps(dataclasses.astuple(job.shard))


def _run(text: str) -> str:
    """Runs one job in a Beam worker: JSON in, JSON out."""
    quiet_tensorflow()
    job = Job.from_json(text)
    outcome = run_here(job, lambda examples: None)
    return json.dumps(
        {"job": _name(job), "metadata": outcome.metadata, "reason": outcome.reason, "details": outcome.details}
    )  # fmt: skip
