"""What ingest and pretokenize take before they ever ran: a sample of each source is really read, and `plan` scales it
by the listing."""

from __future__ import annotations

import pytest

from omniloom.infra.artifacts import Artifact
from omniloom.pipelines import measuring, measuring_data, takes
from omniloom.pipelines.config import load
from omniloom.pipelines.measuring_data import Sample
from omniloom.pipelines.plan import make_plan
from omniloom.stages.ingest.config import IngestConfig
from omniloom.stages.ingest.measured import _evenly, read_some

CPUS = 4
HERE = f"cluster.num_cpus={CPUS}"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("OMNILOOM_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def texts(tmp_path):
    """Forty texts of one record each, the later the longer."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(40):
        (folder / f"{number:02d}.txt").write_text("word " * (10 + number))
    return folder


def config_of(folder) -> IngestConfig:
    return IngestConfig.model_validate({"sources": [{"kind": "text", "name": "t", "uri": str(folder)}]})


def pipeline(tmp_path, folder, *overrides: str):
    sources = f"stages.ingest.sources=[{{kind: text, name: t, uri: {folder}}}]"
    left = [f"stages.{name}=null" for name in ("tokenizer_image", "tokenizer_joint", "evaluate")]
    alone = ["stages.train.objectives={}", "stages.train.packing.mixture={image: 0, video: 0, text: 1}"]
    return make_plan(load("demo", [f"storage={tmp_path / 'runs'}", sources, *left, *alone, HERE, *overrides]))


def keep(plan, sample: Sample, tokens: Sample | None = None) -> None:
    config = plan["ingest"].config
    measuring.write(measuring_data._of_source(config, 0), sample)
    if tokens:
        measuring.write(measuring_data._of_tokens(config, 0, plan["pretokenize"].config, None), tokens)


def test_some_items_of_all_parts_are_read(texts, tmp_path):
    """With time enough all but the group that warms up; without, that and one more."""
    found = read_some(config_of(texts), 0, str(tmp_path / "all"), 60.0)
    sizes = [file.stat().st_size for file in sorted(texts.iterdir())]
    counted = [size for number, size in enumerate(sizes) if number % 5]  # five groups of eight, of which one warms up
    assert (found.items, found.records, found.bytes) == (32, 32, sum(counted))
    assert 0 < found.seconds < 10
    few = read_some(config_of(texts), 0, str(tmp_path / "few"), 0.0)
    assert (few.items, few.bytes) == (8, sum(sizes[1::5]))
    assert few.bytes / few.items == pytest.approx(sum(sizes) / 40, rel=0.05)  # neither the short nor the long ones


def test_of_many_items_few_are_held_evenly():
    found = [item["n"] for item in _evenly({"n": n} for n in range(10_000))]
    steps = {b - a for a, b in zip(found, found[1:], strict=False)}
    assert 256 <= len(found) <= 512 and len(steps) == 1 and found[0] == 0 and found[-1] > 9_900


def test_ingest_is_scaled_by_bytes_over_the_cpus(texts, tmp_path):
    plan = pipeline(tmp_path, texts)
    assert "ingest" not in takes.of(plan)
    total = sum(file.stat().st_size for file in texts.iterdir())
    keep(plan, Sample(0.5, 4, total // 10, 6, 2.0, "2026-11-28"))
    times = total / (total // 10)
    found = takes.of(plan)["ingest"]
    assert found.seconds == pytest.approx(2.0 + 0.5 * times / CPUS)
    assert found.units_per_second == pytest.approx(6 * CPUS / 0.5) and found.unit == "records"
    assert found.basis == "a sample of each source, measured here on 2026-11-28"
    one = takes.of(pipeline(tmp_path, texts, "stages.ingest.num_workers=1"))["ingest"]
    assert one.seconds == pytest.approx(2.0 + 0.5 * times)
    assert "ingest" not in takes.of(pipeline(tmp_path, texts, "cluster.address=10.0.0.1:6379"))
    assert "ingest" not in takes.of(pipeline(tmp_path, texts, "stages.ingest.chunk_chars=7"))  # another reading
    (texts / "99.txt").write_bytes(b"w " * (total // 2))
    more = takes.of(pipeline(tmp_path, texts))["ingest"]
    assert more.seconds == pytest.approx(2.0 + 0.5 * (total + total // 2 * 2) / (total // 10) / CPUS)


def test_without_sizes_files_are_counted(texts, tmp_path):
    plan = pipeline(tmp_path, texts)
    keep(plan, Sample(0.5, 4, 0, 6, 2.0, "2026-11-28"))
    assert takes.of(plan)["ingest"].seconds == pytest.approx(2.0 + 0.5 * 40 / 4 / CPUS)


def test_pretokenize_goes_by_the_records(texts, tmp_path):
    """Those that are expected, or that there are; by as many actors as there is room for."""
    plan = pipeline(tmp_path, texts)
    total = sum(file.stat().st_size for file in texts.iterdir())
    keep(plan, Sample(0.5, 4, total // 10, 6, 2.0, "2026-11-28"))
    assert "pretokenize" not in takes.of(plan)
    keep(plan, Sample(0.5, 4, total // 10, 6, 2.0, "2026-11-28"), Sample(3.0, 0, 0, 12, 5.0, "2026-11-29"))
    expected = 6 * total / (total // 10)
    found = takes.of(plan)["pretokenize"]
    assert found.seconds == pytest.approx(5.0 + expected * 3.0 / 12 / CPUS)
    assert found.basis.endswith("2026-11-29") and found.cpu_hours == pytest.approx(found.seconds / 3600)
    plan["ingest"].artifact = Artifact("ingest", "0", "", {"metrics": {"records": 1200}})
    assert takes.of(plan)["pretokenize"].seconds == pytest.approx(5.0 + 1200 * 3.0 / 12 / CPUS)
    two = pipeline(tmp_path, texts, "stages.pretokenize.workers=2")
    assert takes.of(two)["pretokenize"].seconds == pytest.approx(5.0 + expected * 3.0 / 12 / 2)
    assert "pretokenize" not in takes.of(pipeline(tmp_path, texts, "stages.pretokenize.vocab_size=300"))


def test_what_ran_before_is_known_better(texts, tmp_path):
    plan = pipeline(tmp_path, texts)
    keep(plan, Sample(0.5, 4, 100, 6, 2.0, "2026-11-28"))
    times = {"seconds": 60.0, "ended": "2026-11-27T12:00:00+00:00"}
    sources = {"bytes": plan["ingest"].sources["bytes"]}
    plan["ingest"].known = Artifact("ingest", "ab" * 8, "", {"metrics": {}, "times": times, "sources": sources})
    assert takes.of(plan)["ingest"].seconds == pytest.approx(60.0)


@pytest.mark.slow
def test_sources_are_really_sampled(texts, tmp_path):
    """In processes of their own; by what was kept the next plan knows both stages."""
    plan = pipeline(tmp_path, texts)
    found = measuring_data.measure(plan.config)
    assert set(found) == {"ingest", "pretokenize"}
    assert all(0 < seconds < 60 for told in found.values() for seconds in told.values())
    told = takes.of(plan)
    assert 0 < told["ingest"].seconds < 60 and 0 < told["pretokenize"].seconds < 120
