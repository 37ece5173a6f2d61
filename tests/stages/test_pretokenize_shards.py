"""Pretokenize's actor: what it writes does not depend on how it came to it, and nothing it holds grows with a shard."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import corpora
import numpy as np
import pytest
import torch

from omniloom.infra import storage
from omniloom.infra.artifacts import Artifact
from omniloom.models.tokenizer.quantizers.config import GaussianConfig
from omniloom.models.unified.config import UnifiedConfig
from omniloom.stages.checkpoints.tokenizer import load_tokenizer
from omniloom.stages.data import records
from omniloom.stages.data.aspects import Aspects
from omniloom.stages.data.clips import decode
from omniloom.stages.data.documents import Documents
from omniloom.stages.data.packing import Placed
from omniloom.stages.data.token_shards import from_bf16, to_bf16
from omniloom.stages.data.tokens import TokenSet
from omniloom.stages.pretokenize import encoders, taken
from omniloom.stages.pretokenize import shard as shard_module
from omniloom.stages.pretokenize import stage as pretokenize
from omniloom.stages.pretokenize.index import write_indices
from omniloom.stages.pretokenize.shard import ShardTokenizer
from omniloom.stages.pretokenize.stats import combine

SHARDS = 4
ASPECTS = Aspects(("1:1", "3:2", "2:3"), 8)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """The shapes in shards of unlike sizes, texts between them; the second holds texts alone."""
    folder = tmp_path_factory.mktemp("corpus")
    rows = list(records.iterate(corpora.ingest_shapes(folder / "shapes").uri))
    texts = [
        {
            "id": hashlib.sha256(b"text%d" % number).hexdigest(),
            "kind": "text",
            "split": "test" if number % 5 == 0 else "train",
            "text": "a red square " * (number % 7) + "\u00e9",
            "source": "words",
            "path": str(number),
            "part": 0,
            "synthetic": False,
            "meta": '{"language": "en"}' if number % 2 else "{}",
        }
        for number in range(20)
    ]
    parts = [rows[:5] + texts[:3], texts[3:12], rows[5:20], texts[12:] + rows[20:]]
    for number, part in enumerate(parts):
        records.write_shard(str(folder / "ingest" / records.shard_name(number)), part)
    return corpora.seal(folder / "ingest", "ingest")


def config(**fields) -> pretokenize.Config:
    given = {"image_size": 24, "video_size": 24, "frames": 5, "aspects": ("1:1", "3:2", "2:3"), "batch_size": 6}
    return pretokenize.Config(**{**given, **fields})


def actor(folder: Path, visual, settings: pretokenize.Config) -> ShardTokenizer:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "text.json").write_text(corpora.text_tokenizer().to_json(), encoding="utf-8")
    return ShardTokenizer(settings, visual, str(folder / "text.json"), str(folder / "output"), str(folder / "state"))


def listed(corpus) -> list[dict]:
    return [{"index": number, "uri": uri} for number, uri in enumerate(records.shards(corpus.uri))]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory, corpus, visual) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    actor(folder, visual, config()).tokenize(listed(corpus))
    return folder


def test_shards_come_out_the_same_together_and_alone_with_any_number_of_threads(tmp_path, corpus, visual, whole):
    expected = contents(whole)
    assert {f"state/shards/{number:05d}.json" for number in range(SHARDS)} < set(expected)
    torch_threads = torch.get_num_threads()
    for number, (groups, cpus) in enumerate([([[3], [1], [0], [2]], 1), ([[0, 1], [2, 3]], 3), ([[2, 0, 3, 1]], 2)]):
        made = actor(tmp_path / str(number), visual, config(cpus=cpus))
        torch.set_num_threads(torch_threads)  # which may change sums; those of decoding may not
        for group in groups:
            made.tokenize([listed(corpus)[place] for place in group])
        assert contents(tmp_path / str(number)) == expected


def test_batches_are_full_from_one_shard_to_the_next(tmp_path, corpus, visual, monkeypatch):
    passes, encode = [], encoders.Encoders.encode

    def counted(self, clips, size):
        passes.append((len(clips), size, clips[0].shape))
        return encode(self, clips, size)

    monkeypatch.setattr(encoders.Encoders, "encode", counted)
    actor(tmp_path, visual, config()).tokenize(listed(corpus))
    assert {size for _, size, shape in passes if shape[0] == 1} == {6}
    assert {size for _, size, shape in passes if shape[0] == 5} == {1}  # videos of five frames: six images' worth
    for shape in {shape for _, _, shape in passes}:
        counts = [count for count, _, found in passes if found == shape]
        full = next(size for _, size, found in passes if found == shape)
        assert counts[:-1] == [full] * (len(counts) - 1) and 0 < counts[-1] <= full


def test_what_waits_for_a_rare_shape_is_bounded(tmp_path, corpus, visual, whole, monkeypatch):
    held, land = [], shard_module._Passage._land

    def noted(self):
        land(self)
        held.append(len(self._documents))

    monkeypatch.setattr(shard_module._Passage, "_land", noted)
    actor(tmp_path / "free", visual, config(batch_size=32)).tokenize(listed(corpus))
    most, held[:] = max(held), []
    monkeypatch.setattr(shard_module, "_HELD", 0)
    monkeypatch.setattr(shard_module, "_TOGETHER", 2)
    actor(tmp_path / "bound", visual, config()).tokenize(listed(corpus))
    assert contents(tmp_path / "bound") == contents(whole) and max(held) < most


def test_texts_are_encoded_as_one_by_one(corpus, visual, whole):
    text = corpora.text_tokenizer()
    for number, uri in enumerate(records.shards(corpus.uri)):
        rows = list(records.iterate_shard(uri))
        for split in {row["split"] for row in rows}:
            import pyarrow as pa

            file = whole / "output" / "tokens" / split / f"shard-{number:05d}.arrow"
            found = pa.ipc.open_file(file).read_all().to_pylist()
            mine = [row for row in rows if row["split"] == split]
            assert [row["id"] for row in found] == [row["id"] for row in mine]
            for row, made in zip(mine, found, strict=True):
                said = (
                    [row["text"]]
                    if row["kind"] == "text"
                    else row["captions"] or [s["text"] for s in row["segments"] or () if s["type"] == "text"]
                )
                ids = [segment["ids"] for segment in made["segments"] if segment["kind"] == "text"]
                assert ids == [text.encode(words) for words in said]
                assert made["bytes"] == len(" ".join(said).encode())


def test_an_error_leaves_no_shard_and_a_later_run_goes_on(tmp_path, corpus, visual, whole, monkeypatch):
    class Full(OSError):
        pass

    calls, real = [], shard_module.decode_record

    def fails(*arguments):
        calls.append(arguments)
        if len(calls) == 17:
            raise Full("no space left")
        return real(*arguments)

    monkeypatch.setattr(shard_module, "decode_record", fails)
    made = actor(tmp_path, visual, config())
    with pytest.raises(Exception, match="no space left"):
        made.tokenize(listed(corpus))
    done = contents(tmp_path)
    names = [name for name in done if name.startswith("output")]
    assert all(done[name] == contents(whole)[name] for name in names) and not any("/.tmp-" in name for name in names)
    finished = {name.split("/")[-1].split(".")[0] for name in done if name.startswith("state/shards")}
    assert len(finished) < SHARDS
    made.tokenize([shard for shard in listed(corpus) if f"{shard['index']:05d}" not in finished])
    assert contents(tmp_path) == contents(whole)


def _work(folder: Path, visual, shards: list[dict]) -> None:
    actor(folder, visual, config()).tokenize(shards)


@pytest.mark.slow
def test_killed_at_twenty_moments_it_ends_with_the_same_bytes(tmp_path, corpus, visual, whole):
    """Processes that are killed with SIGKILL, each at another moment, until all is done. They are forked by a server
    that has the imports and no threads."""
    context, rng, kills = multiprocessing.get_context("forkserver"), random.Random(0), 0
    context.set_forkserver_preload([__name__])
    timed = context.Process(target=_work, args=(tmp_path / "first", visual, listed(corpus)))
    timed.start(), timed.join(120)
    began = time.monotonic()
    timed = context.Process(target=_work, args=(tmp_path / "timed", visual, listed(corpus)))
    timed.start(), timed.join(120)
    seconds = time.monotonic() - began
    assert timed.exitcode == 0
    for trial in range(40):
        folder = tmp_path / str(trial)
        while True:
            done = {name.split(".")[0] for name in storage.list_files(str(folder / "state" / "shards"))}
            left = [shard for shard in listed(corpus) if f"{shard['index']:05d}" not in done]
            if not left:
                break
            process = context.Process(target=_work, args=(folder, visual, left))
            process.start()
            if kills < 20:
                process.join(rng.uniform(0.02, 1.1 * seconds))
            else:
                process.join(120)
                assert process.exitcode == 0
            if process.is_alive():
                os.kill(process.pid, signal.SIGKILL)
                kills += 1
            process.join(60)
        found = {name: data for name, data in contents(folder).items() if "/.tmp-" not in name}
        assert found == contents(whole)
        if kills >= 20:
            return
    pytest.fail(f"only {kills} of 20 kills came before the end")


def kl(tmp_path) -> object:
    return corpora.tokenizer(tmp_path / "kl", quantizer=GaussianConfig(latent_dim=4))


def tokens_of(folder: Path, corpus, visual, settings) -> TokenSet:
    actor(folder, visual, settings).tokenize(listed(corpus))
    write_indices(str(folder / "output"), str(folder / "state"))
    text = corpora.text_tokenizer()
    return TokenSet(corpora.pretokenize(folder / "output", {}, text), "train")


def test_log_variances_are_those_of_the_posterior_and_widen_the_deviation(tmp_path, corpus):
    visual = kl(tmp_path)
    model = load_tokenizer(visual)
    found = tokens_of(tmp_path / "kept", corpus, visual, config(log_variances=True))
    rows, checked = list(records.iterate(corpus.uri, split="train")), 0
    means, variances = [], []
    for row, document in zip(rows, found, strict=True):
        for token in document:
            if token.kind != "visual":
                continue
            means.append(token.latents)
            variances.append(np.exp(token.log_variances))
            assert token.codes is None and token.latents.shape == token.log_variances.shape
        if row["kind"] == "image":
            token, height, width = document[-1], *(8 * side for side in document[-1].grid[1:])
            pixels = torch.from_numpy(decode("image", row["media"], (height, width), 1)).permute(3, 0, 1, 2)
            with torch.no_grad():
                mean, log_variance = model.encode(pixels[None].float() / 255 - 0.5).prequant.chunk(2, 1)
            for mine, theirs in ((token.latents, mean), (token.log_variances, log_variance.clamp(-30, 20))):
                np.testing.assert_allclose(mine, theirs[0].permute(1, 2, 3, 0).reshape(-1, 4), atol=5e-5)
            checked += 1
    assert checked > 10
    shards = [storage.read_json(str(tmp_path / f"kept/state/shards/{number:05d}.json")) for number in range(SHARDS)]
    total = np.concatenate(means).astype(float).var(0) + np.concatenate(variances).astype(float).mean(0)
    np.testing.assert_allclose(combine(shards)["latent_std"], np.sqrt(total), rtol=1e-4)
    without = tokens_of(tmp_path / "without", corpus, visual, config())
    assert all(token.log_variances is None for document in without for token in document)


def test_latents_in_bf16_are_the_nearest_and_take_half_the_room(tmp_path, corpus, visual):
    full = tokens_of(tmp_path / "fp32", corpus, visual, config())
    half = tokens_of(tmp_path / "bf16", corpus, visual, config(latents="bf16"))
    pairs = [(a, b) for one, other in zip(full, half, strict=True) for a, b in zip(one, other, strict=True) if a.grid]
    for a, b in pairs:
        assert b.latents.dtype == np.float32 and a.grid == b.grid and (a.codes == b.codes).all()
        assert (b.latents == torch.from_numpy(a.latents.copy()).bfloat16().float().numpy()).all()
    assert len(pairs) > 20
    values = np.random.default_rng(0).normal(size=10_000).astype(np.float32) * 1e3
    values[:4] = 1.00390625, 1.01171875, -0.0, 3.3895314e38  # two ties, to the even one each, and nearly the greatest
    assert (from_bf16(to_bf16(values)) == torch.from_numpy(values).bfloat16().float().numpy()).all()


def test_actors_are_as_many_as_the_cluster_has_room_for(monkeypatch):
    import ray

    def room(resources: dict, **fields) -> int:
        monkeypatch.setattr(ray, "cluster_resources", lambda: resources)
        return pretokenize._room(config(**fields))

    assert room({"CPU": 7.0}, cpus=2) == 3
    assert room({"CPU": 1.0}, cpus=2) == 1  # else nothing would ever begin
    assert room({"CPU": 64.0, "GPU": 4.0}, cpus=4, gpus=1) == 4
    assert room({"CPU": 8.0, "GPU": 4.0}, cpus=4, gpus=0.5) == 2


def test_an_actor_gets_some_shards_at_a_time_and_every_shard_goes_to_one():
    for count, actors in ((1, 1), (7, 2), (100, 3), (1000, 2)):
        todo = [{"index": number, "uri": str(number)} for number in range(count)]
        parts = [part["shards"] for part in pretokenize._parts(todo, actors)]
        assert [shard for part in parts for shard in part] == todo and max(map(len, parts)) <= 8
        assert len(parts) >= min(count, 4 * actors)


def test_training_draws_latents_anew_in_each_row_and_the_same_of_a_rows_seed(tmp_path, corpus):
    """Against the normal distribution of the posterior itself: what is drawn has its mean and deviation."""
    tokens = tokens_of(tmp_path / "kept", corpus, kl(tmp_path), config(log_variances=True))
    model = UnifiedConfig(vocab_size=300, latent_dim=4, width=32, layers=1, heads=2, time_dim=16)
    documents = Documents(tokens, model)
    (image, *_), (text, *_) = tokens.indices("image"), tokens.indices("text")
    (several, *_) = tokens.indices("document")
    placed = Placed(int(image), "draw", 30)

    def latents(place: Placed, seed: int | None = None) -> list[np.ndarray]:
        return [s.latents for s in documents.segments(place, seed) if s.kind == "visual"]

    (mean,) = latents(placed)
    token = tokens.document(int(image))[-1]
    np.testing.assert_allclose(mean * documents.std + documents.mean, token.latents, atol=1e-6)
    draws = np.stack([latents(placed, seed)[0] for seed in range(2000)])
    z = (draws - mean) * documents.std / np.exp(0.5 * token.log_variances)
    assert abs(z.mean()) < 0.01 and abs(z.std() - 1) < 0.01
    assert np.abs(np.corrcoef(z.reshape(2000, -1).T) - np.eye(z[0].size)).max() < 0.12  # places know nothing of another
    assert (latents(placed, 5)[0] == draws[5]).all() and (draws[5] != draws[6]).all()
    both = latents(Placed(int(several), "document", 60, stop=3), 5)
    means = latents(Placed(int(several), "document", 60, stop=3))
    noise = [(a - b) / np.abs(a - b).max() for a, b in zip(both, means, strict=True)]
    assert len(both) == 2 and not np.allclose(noise[0].ravel()[:16], noise[1].ravel()[:16])
    assert [s.ids.tolist() for s in documents.segments(Placed(int(text), "text", 4, stop=4), 5)]


def test_how_well_pictures_are_reconstructed_is_told_of_new_ones_and_of_others(tmp_path, corpus, visual, whole):
    model = load_tokenizer(visual)
    expected: dict[tuple[str, bool], list[np.ndarray]] = {}
    notes = [storage.read_json(str(whole / f"state/shards/{number:05d}.json")) for number in range(SHARDS)]
    for number, uri in enumerate(records.shards(corpus.uri)):
        pictures: dict[str, list[dict]] = {"image": [], "video": []}
        for row in records.iterate_shard(uri):
            parts = [part for part in row["segments"] or () if part["type"] == "image"]
            for part in parts or [row] * (row["kind"] in pictures):
                pictures["image" if parts else row["kind"]].append(part)
        for kind, frames in (("image", 1), ("video", 5)):
            for item in pictures[kind][: shard_module._MEASURED]:
                bucket = ASPECTS.bucket(item["width"], item["height"])
                clip = decode(kind, item["media"], ASPECTS.shape(bucket, 24), frames)
                pixels = torch.from_numpy(clip).permute(3, 0, 1, 2)[None].float() / 255 - 0.5
                with torch.no_grad():
                    recon = model(pixels)[0].clamp(-0.5, 0.5)
                expected.setdefault((kind, number == 3), []).append(((recon - pixels) ** 2).double().numpy().ravel())
    assert sum(values for shard in notes for _, values in shard["errors"].values()) == sum(
        len(error) for errors in expected.values() for error in errors
    )
    shards = [taken.Shard(f"{n}.parquet", n, {"number": n}) for n in range(SHARDS)]
    known = {shard.name: shard.facts for shard in shards[:3]}
    storage.write_json(str(tmp_path / "resume/shards.json"), {"shards": known})
    told = taken.drift(shards, notes, Artifact("pretokenize", "0" * 64, str(tmp_path), {}))
    for when in ("before", "new"):
        error = np.concatenate(expected["image", when == "new"]).mean()
        assert told[f"psnr_image_{when}"] == pytest.approx(-10 * np.log10(error), abs=1e-3)
    error, values = notes[3]["errors"]["video"]
    assert error == pytest.approx(np.concatenate(expected["video", True]).sum(), rel=1e-4) and values > 0
    assert not any("video" in name for name in told)  # there was none before
    assert told["psnr_image_new"] != pytest.approx(told["psnr_image_before"], abs=0.01)
    notes[3].pop("errors")  # as earlier versions noted
    older = taken.drift(shards, notes, Artifact("pretokenize", "0" * 64, str(tmp_path), {}))
    assert older == {name: value for name, value in told.items() if not name.startswith("psnr")} != {}
