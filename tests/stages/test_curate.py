"""Curation, step by step: what each leaves out and why; scenes, evaluation sets, a user's function, resuming."""

from __future__ import annotations

import base64
import io
import json
import re
import sys
import time
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest
from corpora import Killed
from curation_cases import Drawn, context_of, curated, ingested, jsonl, paths, put, saved
from PIL import Image, ImageFilter

from omniloom.infra import storage
from omniloom.infra.errors import InputError
from omniloom.stages.curate import stage as curate
from omniloom.stages.data import records
from omniloom.stages.data.media.decode import decode_video, encode_mp4
from omniloom.stages.ingest.config import IngestConfig

TRAIN = {"train": 1.0, "validation": 0.0, "test": 0.0}


@pytest.fixture
def memory():
    root = f"memory://curate-{time.monotonic_ns()}"
    yield root
    storage.remove(root)


@pytest.fixture(scope="module")
def drawn():
    return Drawn(11)


def pictures(root: str, files: dict[str, np.ndarray | bytes], **fields) -> str:
    content = {name: value if isinstance(value, bytes) else saved(value) for name, value in files.items()}
    return ingested(root, {"kind": "image_folder", "uri": put(f"{root}/in", content)}, **fields)


def texts(root: str, found: list[str], **fields) -> str:
    source = {"kind": "jsonl", "uri": put(f"{root}/in", {"t.jsonl": jsonl({"t": t} for t in found)}), "text_field": "t"}
    return ingested(root, source, **fields)


def videos(root: str, files: dict[str, np.ndarray], fps: float = 10) -> str:
    content = {name: encode_mp4(frames, fps) for name, frames in files.items()}
    return ingested(root, {"kind": "video_folder", "uri": put(f"{root}/in", content)})


def reasons(found) -> dict[str, str]:
    return {line["path"]: line["reason"] for line in found.left}


def test_size_by_side_pixels_and_aspect(memory, drawn):
    shapes = {"small": (20, 60), "few": (40, 40), "many": (200, 100), "thin": (40, 130), "good": (60, 70)}
    corpus = pictures(memory, {f"{name}.png": drawn.photo(*shape) for name, shape in shapes.items()})
    step = {"kind": "size", "min_side": 30, "min_pixels": 2000, "max_pixels": 10_000, "max_aspect": 3}
    found = curated(memory, corpus, step)
    assert paths(found.rows) == ["good.png"]
    assert reasons(found) == {
        "few.png": "40x40 pixels: fewer than 2,000",
        "many.png": "100x200 pixels: more than 10,000",
        "small.png": "60x20 pixels: a side is below 30",
        "thin.png": "130x40 pixels: 3.2 to 1, above 3",
    }


def test_blur_goes_and_what_is_sharp_stays(memory, drawn):
    sharp = drawn.photo(200, 240)
    soft = np.asarray(Image.fromarray(sharp).filter(ImageFilter.GaussianBlur(6)))
    corpus = pictures(memory, {"sharp.png": sharp, "soft.png": soft, "tiny.png": drawn.photo(4, 60)[:4]})
    found = curated(memory, corpus, {"kind": "blur", "min_variance": 30})
    assert "sharp.png" in paths(found.rows) and "soft.png" not in paths(found.rows)
    assert reasons(found)["soft.png"].startswith("variance of the Laplacian ")


def test_the_variance_of_the_laplacian_is_that_of_its_definition(drawn):
    from scipy.ndimage import laplace

    from omniloom.stages.curate.steps.blur import sharpness

    pixels = drawn.photo(40, 50)
    grey = pixels.astype(np.float64) @ [0.299, 0.587, 0.114]
    assert sharpness(pixels) == pytest.approx(laplace(grey)[1:-1, 1:-1].var(), rel=1e-4)


def moving(drawn, frames: int = 20) -> np.ndarray:
    scene = drawn.photo(64, 160)
    return np.stack([scene[:, 4 * t : 4 * t + 64] for t in range(frames)])


def test_still_and_black_videos_and_pictures_go(memory, drawn):
    alive = moving(drawn)
    black = np.full_like(alive, 4) + drawn.rng.integers(0, 6, alive.shape, np.uint8)
    files = {"alive.mp4": alive, "still.mp4": alive[:1].repeat(20, 0), "black.mp4": black}
    corpus = videos(memory, files)
    found = curated(memory, corpus, {"kind": "still"})
    assert paths(found.rows) == ["alive.mp4"]
    assert reasons(found)["black.mp4"] == "100% of the frames are black"
    assert reasons(found)["still.mp4"].startswith("motion of 0.")
    night = pictures(f"{memory}/p", {"night.png": black[0], "day.png": drawn.photo()})
    assert paths(curated(f"{memory}/p", night, {"kind": "still"}).rows) == ["day.png"]


def test_length_of_texts_and_videos(memory, drawn):
    corpus = texts(memory, ["short", "x" * 50, "y" * 500])
    found = curated(memory, corpus, {"kind": "length", "min_chars": 10, "max_chars": 100})
    assert [row["text"][0] for row in found.rows] == ["x"]
    assert [line["reason"] for line in found.left] == ["5 characters: fewer than 10", "500 characters: more than 100"]
    clips = videos(f"{memory}/v", {"a.mp4": moving(drawn, 5), "b.mp4": moving(drawn, 15)})
    found = curated(f"{memory}/v", clips, {"kind": "length", "min_seconds": 1})
    assert paths(found.rows) == ["b.mp4"] and reasons(found) == {"a.mp4": "0.5 seconds: fewer than 1"}


def test_captions_by_length_and_repetition(memory, drawn):
    said = {
        "a.png": ["dog", "a brown dog runs over the wet sand"],
        "b.png": ["buy buy buy buy buy now now now"],
        "c.png": ["one two three four five six seven eight nine ten eleven"],
        "d.png": [],
    }
    rows = [{"file": name, "caption": captions} for name, captions in said.items() if captions]
    files = {name: saved(drawn.photo(20, 20)) for name in said}
    source = {"kind": "image_folder", "uri": put(f"{memory}/in", {**files, "m.jsonl": jsonl(rows)})}
    corpus = ingested(memory, {**source, "captions": {"manifest": "m.jsonl"}})
    step = {"kind": "captions", "min_words": 3, "max_words": 10, "max_repetition": 0.5}
    found = curated(f"{memory}/1", corpus, step)
    assert [row["captions"] for row in found.rows] == [["a brown dog runs over the wet sand"], [], [], []]
    assert [row["caption"] for row in found.rows] == ["a brown dog runs over the wet sand", None, None, None]
    found = curated(f"{memory}/2", corpus, {**step, "required": True})
    assert paths(found.rows) == ["a.png"]
    assert reasons(found) == {
        "a.png": "caption: dog",
        "b.png": "75% of a caption's words repeat others",
        "c.png": "a caption of 11 words: more than 10",
        "d.png": "no caption",
    }


@pytest.mark.parametrize(
    "text, rules, reason",
    [
        ("too few words", "gopher", "3 words, expected 50"),
        ("a b c d e of the " * 20, "gopher", "words of 1."),
        ("\n".join(["- the of word having " * 3] * 30), "gopher", "100% of the lines are bullets"),
        (
            "\n".join(["what the of word having " * 3 + "so..."] * 12),
            "gopher",
            "100% of the lines end with an ellipsis",
        ),
        ("the of 1234 5678 " * 20, "gopher", "50% of the words have a letter"),
        ("the of #word # having " * 20, "gopher", "of # in "),
        ("lontor mumper karten " * 20, "gopher", "0 of the, be, to, of"),
        ("the same line of words\n" * 20, "repetition", "95% of the lines are there before"),
        ("Lorem ipsum dolor. Sit amet. And so on.", "c4", "holds lorem ipsum"),
        ("function() { return 1; }", "c4", "holds {"),
        ("One sentence. Two sentences.", "c4", "2 sentences, at least 3"),
    ],
)
def test_what_is_no_prose_goes_by_the_rule_that_says_so(text, rules, reason):
    from omniloom.stages.curate.item import Item
    from omniloom.stages.curate.steps.text_quality import TextQuality, TextQualityConfig

    step = TextQuality(TextQualityConfig(kind="text_quality", rules=[rules]))
    said = step.apply(Item({"kind": "text", "text": text}))
    assert said and said.startswith(f"{rules}: ") and reason in said


def test_prose_stays_by_all_rules(memory, drawn):
    corpus = texts(memory, [drawn.prose() for _ in range(10)] + ["buy now " * 60])
    found = curated(memory, corpus, {"kind": "text_quality", "rules": ["gopher", "repetition", "c4"]})
    assert len(found.rows) == 10 and found.metrics["left_out_text_quality"] == 1


def test_runs_that_are_there_before_count_once():
    """Table A1 of the paper; words of five letters."""
    from omniloom.stages.curate.steps.text_quality import _in_repeated

    words = [f"w{n:04d}" for n in range(20)]
    assert _in_repeated(words, 5) == 0
    assert _in_repeated(words + words[:7], 5) == 25 and _in_repeated(words + words[:10], 5) == 50
    assert _in_repeated(["wwwww"] * 15, 5) == 50


@pytest.mark.skipif(find_spec("py3langid") is None, reason="the extra `language` is not installed")
def test_other_languages_go(memory):
    said = [
        "The quick brown fox jumps over the lazy dog while the sun is setting behind the hills.",
        "Der schnelle braune Fuchs springt über den faulen Hund, während die Sonne hinter den Hügeln untergeht.",
        "Le renard brun saute par-dessus le chien paresseux pendant que le soleil se couche derrière les collines.",
        "ok",
    ]
    found = curated(memory, texts(memory, said), {"kind": "language", "keep": ["en", "de"]})
    assert [row["text"] for row in found.rows] == [said[0], said[1], said[3]]
    assert [line["reason"] for line in found.left] == ["in fr"]
    with pytest.raises(InputError, match="no language xx; the codes are ace, af, "):
        curated(memory, "", {"kind": "language", "keep": ["xx"]})


# ---- scenes ----


def test_a_recording_is_cut_where_scenes_change(memory, drawn):
    parts = [moving(drawn, 12), moving(drawn, 18), moving(drawn, 9)]
    corpus = videos(memory, {"trip.mp4": np.concatenate(parts), "one.mp4": moving(drawn, 20)})
    found = curated(memory, corpus, {"kind": "scenes"})
    assert paths(found.rows) == ["one.mp4", "trip.mp4#t=0,1.2", "trip.mp4#t=1.2,3", "trip.mp4#t=3,3.9"]
    clips = found.rows[1:]
    assert [row["frames"] for row in clips] == [12, 18, 9]
    assert [row["duration"] for row in clips] == pytest.approx([1.2, 1.8, 0.9], abs=0.01)
    assert len({row["split"] for row in clips}) == 1 and len({row["id"] for row in clips}) == 3
    for row, part in zip(clips, parts, strict=True):
        assert np.abs(decode_video(row["media"]).astype(int) - part).mean() < 6  # encoded twice
    (recording,) = [row for row in records.iterate(corpus) if row["path"] == "trip.mp4"]
    assert {row["split"] for row in clips} == {recording["split"]}


def test_a_clip_that_is_held_out_in_another_recording_is_not_trained_on(memory, drawn):
    """Two recordings that are not alike share a scene."""
    shared = moving(drawn, 12)
    files = {}
    for number in range(8):  # until two lie in train and test
        files[f"{number}.mp4"] = np.concatenate([moving(drawn, 16), shared, moving(drawn, 14)])
    corpus = videos(memory, files)
    before = {row["path"]: row["split"] for row in records.iterate(corpus)}
    assert {"train"} < set(before.values())
    found = curated(memory, corpus, {"kind": "scenes"})
    middle = [row for row in found.rows if "#t=1.6," in row["path"]]
    assert middle and all(row["split"] != "train" for row in middle)
    assert sum(line["step"] == "held_out" for line in found.left) == sum(s == "train" for s in before.values())


# ---- what models are judged by ----


def judged(root: str, drawn, **fields):
    """A train corpus, some of which is in an evaluation set under other names and encodings."""
    photos = [drawn.photo(60, 80) for _ in range(6)]
    train = pictures(f"{root}/c", {f"{n}.png": p for n, p in enumerate(photos)}, splits=TRAIN)
    others = {f"q{n}.jpg": saved(p[2:-1, 3:], "JPEG", quality=80) for n, p in enumerate(photos[:2])}
    uri = put(f"{root}/bench", {**others, "q9.png": saved(drawn.photo())})
    return train, {"evaluation_sets": [{"kind": "image_folder", "uri": uri, "name": "bench"}], **fields}


def test_an_evaluation_set_that_overlaps_is_refused_with_the_names_of_files(memory, drawn):
    corpus, fields = judged(memory, drawn)
    with pytest.raises(InputError) as error:
        curated(memory, corpus, **fields)
    assert error.value.field == "on_overlap"
    config = curate.Config.model_validate(fields)
    assert [facts["path"] for facts in curate.listing(config)] == ["q0.jpg", "q1.jpg", "q9.png"]
    config.evaluation_sets[0].uri += "/nothing"
    with pytest.raises(InputError) as missing:
        curate.listing(config)
    assert missing.value.field == "evaluation_sets.0.uri"
    assert "2 records that would be trained on are copies of what models are judged by" in str(error.value)
    assert "image_folder_0: 0.png shows the same as bench: q0.jpg" in str(error.value)
    assert "image_folder_0: 1.png shows the same as bench: q1.jpg" in str(error.value)


def test_an_evaluation_set_of_which_nothing_can_be_read_is_told(memory, drawn):
    corpus, _ = judged(memory, drawn)
    sets = [{"kind": "image_folder", "uri": put(f"{memory}/bad", {"a.png": b"no picture"})}]
    with pytest.raises(InputError, match="no record came out of it; the first: a.png: ") as error:
        curated(memory, corpus, evaluation_sets=sets)
    assert error.value.field == "evaluation_sets.0"


def test_an_evaluation_set_that_overlaps_leaves_train(memory, drawn):
    corpus, fields = judged(memory, drawn, on_overlap="drop")
    found = curated(memory, corpus, {"kind": "near_pictures"}, **fields)
    assert paths(found.rows) == ["2.png", "3.png", "4.png", "5.png"]
    assert found.metrics["left_out_held_out"] == 2


def test_a_text_that_holds_a_question_of_an_evaluation_set_is_refused(memory, drawn):
    """Far longer than the question, so that no sketch says they are alike."""
    question = drawn.prose(3)
    long = " ".join([drawn.prose(10), question, drawn.prose(10)])
    corpus = texts(memory, [drawn.prose(12), long], splits=TRAIN)
    bench = put(f"{memory}/bench", {"q.jsonl": jsonl([{"q": question}, {"q": drawn.prose(3)}])})
    sets = [{"kind": "jsonl", "uri": bench, "text_field": "q", "name": "bench"}]
    with pytest.raises(InputError, match=r"1 records .*t.jsonl \(part 2\) holds most of bench: q.jsonl"):
        curated(memory, corpus, evaluation_sets=sets)


def test_an_evaluation_source_lies_in_test_and_its_copies_are_refused(memory, drawn):
    photos = [drawn.photo(60, 80) for _ in range(5)]
    web = put(f"{memory}/a", {f"{n}.png": saved(p) for n, p in enumerate(photos)})
    asked = put(f"{memory}/b", {name: saved(drawn.photo()) for name in ("x.png", "y.png")})
    train, exam = ({"kind": "image_folder", "uri": uri, "name": n} for uri, n in ((web, "web"), (asked, "exam")))
    corpus = ingested(memory, train, exam, splits=TRAIN)
    found = curated(f"{memory}/1", corpus, evaluation_sources=["exam"])
    assert {row["source"]: row["split"] for row in found.rows} == {"web": "train", "exam": "test"}
    config = curate.Config(evaluation_sources=["exma"])
    with pytest.raises(InputError, match="no source 'exma'; the sources are web, exam"):
        curate.check(config, {"records": IngestConfig.model_validate({"sources": [train, exam]})})
    twin = put(f"{memory}/c", {"z.jpg": saved(photos[3], "JPEG")})
    again = ingested(f"{memory}/2", train, {"kind": "image_folder", "uri": twin, "name": "exam"}, splits=TRAIN)
    with pytest.raises(InputError, match="web: 3.png shows the same as exam: z.jpg"):
        curated(f"{memory}/2", again, evaluation_sources=["exam"])


# ---- a function of one's own ----


@pytest.fixture
def rules(tmp_path, monkeypatch):
    (tmp_path / "my_rules.py").write_text(
        "def judge(record, word):\n"
        "    if record['kind'] == 'text' and word in record['text']:\n"
        "        return f'says {word}'\n"
        "    return {'text': record['text'].upper(), 'meta': {'seen': True}} if 'loud' in record['text'] else None\n"
        "def wrong(record):\n    return {'split': 'test'}\n"
        "def broken(record):\n    raise KeyError('nothing')\n"
    )
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    yield tmp_path
    sys.path[:] = before
    sys.modules.pop("my_rules", None)


def test_a_function_of_ones_own_leaves_out_and_changes(memory, rules):
    corpus = texts(memory, ["spam for all", "a quiet text", "a loud text"])
    step = {"kind": "function", "function": "my_rules:judge", "options": {"word": "spam"}, "of": ["text"]}
    found = curated(memory, corpus, step)
    assert [row["text"] for row in found.rows] == ["a quiet text", "A LOUD TEXT"]
    assert json.loads(found.rows[1]["meta"]) == {"seen": True}
    assert found.rows[1]["id"] not in {row["id"] for row in records.iterate(corpus)}
    assert [line["reason"] for line in found.left] == ["says spam"]


@pytest.mark.parametrize(
    "function, message",
    [
        (
            "my_rules:wrong",
            "returned split; what may be changed is captions, label, text, license, meta",
        ),
        ("my_rules:broken", "my_rules:broken raised KeyError: 'nothing' .jsonl_0: t.jsonl, part 1"),
        ("my_rules:absent", "has no function absent"),
        ("no_rules:judge", "no_rules cannot be imported: ModuleNotFoundError"),
    ],
)
def test_a_function_that_cannot_be_used_is_told(memory, rules, function, message):
    corpus = texts(memory, ["a text"])
    with pytest.raises(InputError, match=message) as error:
        curated(memory, corpus, {"kind": "function", "function": function})
    assert error.value.field == "steps.0.function"


def test_an_edited_function_is_another_one(rules):
    config = curate.Config(steps=[{"kind": "function", "function": "my_rules:judge"}])
    before = curate.listing(config)
    (rules / "my_rules.py").write_text("def judge(record):\n    return True\n")
    assert curate.listing(config) != before


# ---- the stage ----

ALL = [
    {"kind": "size", "min_side": 10},
    {"kind": "near_pictures"},
    {"kind": "captions", "min_words": 2},
    {"kind": "scenes"},
    {"kind": "near_texts"},
    {"kind": "exact_duplicates"},
]


def mixed(root: str) -> str:
    drawn = Drawn(21)
    files, rows = {}, []
    for number in range(24):
        pixels = drawn.photo(60, 80)
        suffix, data = drawn.copy(pixels, number)
        files |= {f"{number:02d}a.png": saved(pixels), f"{number:02d}b.{suffix}": data}
        rows.append({"file": f"{number:02d}a.png", "caption": ["x", f"a {drawn.words(4)}"]})
    folder = put(f"{root}/p", {**files, "m.jsonl": jsonl(rows)})
    clips = {f"{n}.mp4": encode_mp4(np.concatenate([moving(drawn, 10), moving(drawn, 10)]), 10) for n in range(4)}
    said = [drawn.prose() for _ in range(12)]
    said += [drawn.reworded(text, 0.05) for text in said]
    return ingested(
        root,
        {"kind": "image_folder", "uri": folder, "captions": {"manifest": "m.jsonl"}},
        {"kind": "video_folder", "uri": put(f"{root}/v", clips)},
        {"kind": "jsonl", "uri": put(f"{root}/t", {"t.jsonl": jsonl({"t": t} for t in said)}), "text_field": "t"},
        shard_items=9,
    )


def content(uri: str) -> dict[str, bytes]:
    return {name: storage.read_bytes(f"{uri}/{name}") for name in storage.list_files(uri)}


def test_a_killed_curation_goes_on_to_the_same_artifact(memory, monkeypatch):
    """Killed after ever more of its writes."""
    corpus = mixed(memory)
    whole = curated(f"{memory}/whole", corpus, *ALL)
    expected = content(whole.context.output)
    config, write, deaths = whole.context.config, storage.write_bytes, 0
    context = context_of(f"{memory}/killed", config, records=whole.context.records)

    def dying(uri, data):
        nonlocal left
        left -= 1
        if left < 0:
            raise Killed
        write(uri, data)

    context.records = SimpleNamespace(uri=corpus)
    for allowed in range(1, 100, 4):
        left = allowed
        monkeypatch.setattr(storage, "write_bytes", dying)
        try:
            curate.run(context)
            break
        except Killed:
            deaths += 1
        finally:
            monkeypatch.setattr(storage, "write_bytes", write)
    assert deaths > 8 and content(context.output) == expected
    assert whole.metrics["left_out_near_pictures"] == 24 and whole.metrics["left_out_near_texts"] == 12
    assert [whole.metrics[f"records_{kind}"] for kind in ("image", "video", "text")] == [24, 8, 12]


def test_what_no_step_touches_is_what_ingest_wrote(memory, drawn):
    corpus = pictures(memory, {f"{n}.png": drawn.photo(20, 30) for n in range(6)}, shard_items=2)
    found = curated(memory, corpus, {"kind": "size", "min_side": 5})
    for name, data in content(f"{corpus}/records").items():
        assert storage.read_bytes(f"{found.context.output}/records/{name}") == data
    assert found.left == [] and found.metrics["left_out"] == 0


def test_the_page_shows_what_went_beside_what_it_is_like(memory, drawn):
    pixels = drawn.photo()
    corpus = pictures(memory, {"<b>.png": pixels, "copy.jpg": saved(pixels, "JPEG"), "small.png": drawn.photo(8, 8)})
    found = curated(memory, corpus, {"kind": "near_pictures"}, {"kind": "size", "min_side": 20})
    for text in ("0.near_pictures", "1.size", "shows the same as image_folder_0: &lt;b&gt;.png", "8x8 pixels"):
        assert text in found.page
    assert found.page.count("data:image/png;base64,") == 2 and "<b>.png" not in found.page
    wide = [Image.open(io.BytesIO(base64.b64decode(png))) for png in re.findall(r"base64,([^\"\']+)", found.page)]
    assert wide[0].width > 2 * 128 and wide[1].width == 8  # the copy beside the one that stays; alone


def test_nothing_left_is_an_error(memory, drawn):
    corpus = pictures(memory, {"a.png": drawn.photo(20, 20)})
    with pytest.raises(InputError, match="leaves none of 1 records"):
        curated(memory, corpus, {"kind": "size", "min_side": 500})


@pytest.mark.parametrize(
    "fields, message",
    [
        ({}, "expected at least one step"),
        ({"steps": [{"kind": "blurr"}]}, "blur"),
        ({"steps": [{"min_side": 3}]}, "is missing; the kinds are exact_duplicates"),
        ({"steps": [{"kind": "size", "min_sid": 3}]}, "min_sid"),
        ({"steps": [{"kind": "size"}], "on_overlap": "drop"}, "goes with evaluation_sources"),
    ],
)
def test_a_wrong_config_is_told(fields, message):
    with pytest.raises(ValueError, match=message):
        curate.Config.model_validate(fields)
