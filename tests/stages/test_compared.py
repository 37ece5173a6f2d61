"""Near twins among what is new come out as those of all rows at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from PIL import Image

from omniloom.infra import storage
from omniloom.infra.artifacts import Artifact
from omniloom.stages.data.media.identity import picture_look
from omniloom.stages.data.media.sketches import SKETCH
from omniloom.stages.ingest.splitting import text_twins, twins
from omniloom.stages.ingest.splitting.compared import Compared
from omniloom.stages.ingest.splitting.lookup import Since
from omniloom.stages.ingest.splitting.sketched import Texts

RNG = np.random.default_rng(11)


def look(seed: int, side: int) -> np.ndarray:
    """Of a picture of a few, brought to a side: copies of one are near twins."""
    noise = np.random.default_rng(seed).integers(0, 256, (7, 7, 3), np.uint8)
    image = Image.fromarray(noise).resize((128, 128), Image.Resampling.BICUBIC).resize((side, side))
    return np.frombuffer(picture_look(np.asarray(image)), np.uint8)


def sketch(seed: int, other: int) -> np.ndarray:
    """Of a text of a few, with a share of it said otherwise."""
    found = np.random.default_rng(seed).integers(0, 1 << 32, SKETCH, np.uint32)
    found[RNG.permutation(SKETCH)[:other]] = RNG.integers(0, 1 << 32, other, np.uint32)
    return found


def noted(compared: Compared, folder: str) -> Artifact:
    compared.write(folder)
    return Artifact("ingest", "0" * 64, folder, {})


def named(pairs: np.ndarray, names: list[bytes]) -> set[frozenset]:
    return {frozenset((names[a], names[b])) for a, b in pairs.tolist()}


def texts_of(ids: np.ndarray, sketches: np.ndarray, numbers: Sequence[int]) -> Texts:
    """Rows that lie in a shard of their number's ten."""
    rows, shards = np.arange(len(numbers)), np.array(numbers, np.int64) // 10

    def read(column: str, shard: int, at: np.ndarray, places: np.ndarray) -> np.ndarray:
        return sketches[at].view(np.uint8)

    return Texts(rows, rows, ids, (shards, rows), [f"shard {n}" for n in range(10)], read)


@pytest.mark.parametrize("kind", ["pictures", "texts"])
def test_what_is_new_is_compared_as_all_at_once(tmp_path, kind):
    texts = kind == "texts"
    made = {RNG.bytes(16): sketch(n % 82, n % 9) if texts else look(n % 82, 100 + n // 82 * 9) for n in range(90)}
    names, given = list(made), []
    earlier = None
    for step, numbers in enumerate([range(2, 85), [*range(1, 70), *range(71, 86)], [*range(0, 60), *range(70, 90)]]):
        now = [names[n] for n in numbers]
        rows = np.stack([made[name] for name in now])
        compared, keys = Compared(earlier), np.frombuffer(b"".join(now), np.uint64).reshape(-1, 2)
        shown = rows[:0] if texts else rows
        pictures = compared.near_pictures("pictures", keys[: len(shown)], shown)
        found = compared.near_texts(texts_of(keys, rows, numbers if texts else []))
        found, whole = (found, text_twins.near_texts(rows)) if texts else (pictures, twins.near_pictures(rows))
        assert named(found, now) == named(whole, now) and len(whole) >= 1
        given.append(len(whole))
        earlier = noted(compared, str(tmp_path / str(step)))
    assert len(set(given)) > 1 and storage.exists(str(tmp_path / "0" / "resume"))


def test_a_row_that_is_gone_brings_two_others_together():
    """A row is paired with the next eight that share a band: here with the tenth once one between is gone."""
    rng = np.random.default_rng(2)
    crowd = rng.integers(0, 1 << 32, (10, SKETCH), np.uint32)
    crowd[:, :3] = crowd[0, :3]  # one band, and the value by which they are put in order
    crowd[9] = crowd[0]
    crowd[9, 5::3] = crowd[1, 5::3]  # no other band
    names = rng.integers(0, 1 << 63, (10, 2)).astype(np.uint64)
    assert len(text_twins.near_texts(crowd)) == 0
    assert text_twins.near_texts(crowd, order=np.array([0, *range(2, 10), 1])).tolist() == [[0, 9]]
    folder = f"memory://gone-{rng.integers(1 << 62)}"
    first = Compared()
    assert len(first.near_texts(texts_of(names, crowd, range(10)))) == 0
    left = [0, 1, 2, 3, 5, 6, 7, 8, 9]
    found = Compared(noted(first, folder)).near_texts(texts_of(names[left], crowd[left], left))
    assert found.tolist() == [[0, 8]]
    storage.remove(folder)


def cut(seed: int, edge: float) -> np.ndarray:
    """The look of a picture of a few, without a share of it at every edge."""
    noise = np.random.default_rng(seed).integers(0, 256, (9, 9, 3), np.uint8)
    image = Image.fromarray(noise).resize((160, 160), Image.Resampling.BICUBIC)
    low = round(160 * edge)
    pixels = np.asarray(image.crop((low, low, 160 - low, 160 - low)), np.uint8)
    return np.frombuffer(picture_look(pixels), np.uint8)


def test_copies_that_few_tables_have_together_are_found_among_what_is_new():
    """Each table has a part of them; those of one table are not those of another."""
    looks = np.stack([*(cut(seed, 0.0) for seed in range(300)), *(cut(seed, 0.03) for seed in range(0, 300, 3))])
    whole = twins.near_pictures(looks)
    assert len(whole) >= 80 and (whole[:, 1] >= 300).all()
    shapes, asked = twins.shapes(looks), np.arange(len(looks)) >= 300
    projected = twins.projections(shapes)
    found = twins.near_pictures(looks, shapes, Since(asked, shapes[:0]), projected)
    assert np.array_equal(found, whole)
    kept = np.delete(looks, 300, 0)  # what is gone is looked up too: nothing that was found among the others goes
    without = twins.near_pictures(kept, twins.shapes(kept), Since(asked[1:], shapes[300:301]), projected)
    assert np.array_equal(without, twins.near_pictures(kept, projected=projected))
