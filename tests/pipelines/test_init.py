"""`init`: from a folder to a config that runs as it is written. Layouts in which captions lie in odd places."""

from __future__ import annotations

import contextlib
import csv
import json
import sqlite3
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image, PngImagePlugin

from omniloom.infra.errors import InputError
from omniloom.pipelines import measuring, takes
from omniloom.pipelines.config import load
from omniloom.pipelines.measuring import MeasuredTokenizer
from omniloom.pipelines.plan import make_plan
from omniloom.pipelines.starting.init import init
from omniloom.pipelines.starting.sizes import Machine
from omniloom.stages.ingest import sources
from omniloom.stages.ingest.look.pairing import named
from omniloom.stages.ingest.readers import Reader

NUMBERS = range(7, 19)  # rows come out of order, and begin behind 0
HERE = Machine(cpus=2, memory=8 << 30)


def caption(number: int) -> str:
    return f"a {['red', 'green', 'blue'][number % 3]} square, number {number}"


def draw(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 255, (24 + number, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def shuffled() -> list[int]:
    return [int(n) for n in np.random.default_rng(3).permutation(list(NUMBERS))]


def texts_elsewhere(root: Path) -> None:
    for n in NUMBERS:
        draw(root / "pics" / f"p{n:03d}.png", n)
        (root / "words").mkdir(parents=True, exist_ok=True)
        (root / "words" / f"p{n:03d}.txt").write_text(caption(n) + "\n")


def json_of_names(root: Path) -> None:
    for n in NUMBERS:
        draw(root / "img" / f"{n}.png", n)
    (root / "labels.json").write_text(json.dumps({"about": {f"{n}.png": caption(n) for n in shuffled()}}))


def table_of_ids(root: Path) -> None:
    root.mkdir()
    with (root / "data.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["id", "weight", "what it shows"])
        rows.writerows([n, 3, caption(n)] for n in shuffled())
    for n in NUMBERS:
        draw(root / "images" / f"{n:05d}.png", n)


def json_beside(root: Path) -> None:
    for n in NUMBERS:
        draw(root / f"{n:03d}.png", n)
        (root / f"{n:03d}.json").write_text(json.dumps({"id": "f" * 40, "meta": {"shown": caption(n), "w": 1}}))


def unquoted_table(root: Path) -> None:
    """As Flickr8k has it: a table without quotes whose captions hold commas, and whose suffix is .txt."""
    for n in NUMBERS:
        draw(root / "Images" / f"{n}.png", n)
    lines = [f"{n}.png,{caption(n)}\n" for n in shuffled()]
    (root / "captions.txt").write_text("image,caption\n" + "".join(lines))


def numbered_lines(root: Path) -> None:
    """As Flickr30k's token file: `name#number`, a tab, the caption."""
    for n in NUMBERS:
        draw(root / "Flicker" / f"{n}.png", n)
    (root / "text").mkdir()
    (root / "text" / "Flickr.token.txt").write_text("".join(f"{n}.png#0\t{caption(n)}\n" for n in shuffled()))


def other_separators(root: Path) -> None:
    for n in NUMBERS:
        draw(root / "media" / "x" / f"{n}.png", n)
    rows = [{"uid": n % 2, "picture": f"D:\\set\\media\\x\\{n}.png", "prompt": caption(n)} for n in shuffled()]
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def lines_in_order(root: Path) -> None:
    """2.png before 10.png, as people count."""
    for n in NUMBERS:
        draw(root / f"{n}.png", n)
    (root / "captions.txt").write_text("".join(f"{caption(n)}\n" for n in NUMBERS))


def table_of_each_album(root: Path) -> None:
    """Names that come again in each folder, captions of one word and of more."""
    for n in NUMBERS:
        draw(root / f"album {n % 3}" / f"{n // 3}.png", n)
    for album in range(3):
        rows = [f"{n // 3}.png;{caption(n)}\n" for n in shuffled() if n % 3 == album]
        (root / f"album {album}" / "captions.txt").write_text("photo;says\n" + "".join(rows))


def yaml_of_names(root: Path) -> None:
    for n in NUMBERS:
        draw(root / "shots" / f"{n:04d}.png", n)
    rows = [{"pictures": [{"shot": f"{n:04d}", "about": {"en": caption(n)}} for n in shuffled()]}]
    (root / "album.yaml").write_text(yaml.safe_dump(rows))


def xml_of_each_picture(root: Path) -> None:
    for n in NUMBERS:
        draw(root / "img" / f"{n}.png", n)
        (root / "xml").mkdir(exist_ok=True)
        told = f"<size><width>40</width></size><shown><en>{caption(n)}</en></shown>"
        (root / "xml" / f"{n}.xml").write_text(f"<annotation><filename>{n}.png</filename>{told}</annotation>")


def one_xml(root: Path) -> None:
    for n in NUMBERS:
        draw(root / "p" / f"{n}.png", n)
    rows = [f'<photo file="{n}.png" stars="3" title="{caption(n)}"/>' for n in shuffled()]
    (root / "photos.xml").write_text(f'<?xml version="1.0"?><photos xmlns="urn:x">{"".join(rows)}</photos>')


def gallery(root: Path) -> None:
    """As a browser shows it, and no parser of XML reads it."""
    for n in NUMBERS:
        draw(root / "img" / f"{n}.png", n)
    rows = [
        f'<figure><img src="img/{n}.png" alt=""><br><figcaption>{caption(n)}</figcaption></figure>' for n in shuffled()
    ]
    (root / "index.html").write_text(f"<!doctype html><html><body><p>Mine\n{chr(10).join(rows)}")


def texts_of_a_language(root: Path) -> None:
    for n in NUMBERS:
        draw(root / f"{n}.png", n)
        (root / f"{n}.en.txt").write_text(caption(n))


def written_in_the_pictures(root: Path) -> None:
    root.mkdir()
    for n in NUMBERS:
        draw(root / f"{n}.png", n)
        info = PngImagePlugin.PngInfo()
        info.add_text("Software", "a camera")
        info.add_itxt("Description", caption(n))
        Image.open(root / f"{n}.png").save(root / f"{n}.png", pnginfo=info)


def written_as_exif(root: Path) -> None:
    root.mkdir()
    for n in NUMBERS:
        draw(root / f"{n}.png", n)
        image = Image.open(root / f"{n}.png")
        exif = image.getexif()
        exif[0x010E] = caption(n)
        image.save(root / f"{n}.jpg", exif=exif)
        (root / f"{n}.png").unlink()


def sections_of_each_album(root: Path) -> None:
    """As Picasa keeps them, in a hidden file of each folder; one folder has a single picture."""
    for n in NUMBERS:
        album = root / ("alone" if n == NUMBERS[5] else f"album {n % 2}")
        draw(album / f"DSC {n:04d}.png", n)
        file = album / ".picasa.ini"
        before = file.read_text() if file.exists() else "[Picasa]\nname=100% mine\n"
        file.write_text(f"{before}[DSC {n:04d}.png]\nbackuphash={4000 + n}\ncaption={caption(n)}\n")


def lines_of_quoted_names(root: Path) -> None:
    """As descript.ion has them, a file of each folder."""
    for n in NUMBERS:
        draw(root / f"album {n % 3}" / f"shot {n}.png", n)
        with (root / f"album {n % 3}" / "descript.ion").open("a") as file:
            file.write(f'"shot {n}.png" {caption(n)}\n')


def database(root: Path) -> None:
    """As photo managers keep it: the note in one table, the file's name in another, its folder in a third."""
    for n in NUMBERS:
        draw(root / f"roll {n % 2}" / f"{n}.png", n)
    with contextlib.closing(sqlite3.connect(root / "library.db")) as library:
        library.execute("CREATE TABLE folders (id INTEGER PRIMARY KEY, path TEXT)")
        library.execute("CREATE TABLE images (id INTEGER PRIMARY KEY, folder INTEGER REFERENCES folders, name TEXT)")
        library.execute("CREATE TABLE notes (image_id INTEGER, writer TEXT, body TEXT)")
        library.execute("CREATE VIEW broken AS SELECT * FROM nowhere")
        library.executemany("INSERT INTO folders VALUES (?, ?)", [(5, "the long name of roll 0"), (6, "roll 1")])
        for key, n in enumerate(shuffled(), 100):
            library.execute("INSERT INTO images VALUES (?, ?, ?)", (key, 5 + n % 2, f"{n}.png"))
            library.execute("INSERT INTO notes VALUES (?, 'a photographer with a long name', ?)", (key, caption(n)))
        library.commit()


def packet(number: int, before: str = "") -> str:
    """XMP as Lightroom and darktable write it: the description in several languages, and more that is no caption."""
    said = f'<rdf:li xml:lang="de">Bild {number}</rdf:li><rdf:li xml:lang="x-default">{caption(number)}</rdf:li>'
    about = "<dc:subject><rdf:Bag><rdf:li>a long keyword that is on every picture</rdf:li></rdf:Bag></dc:subject>"
    return (
        f'<?xpacket begin="{before}" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF '
        'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description xmlns:xmp="http://ns.adobe.com/xap/'
        '1.0/" xmlns:dc="http://purl.org/dc/elements/1.1/" xmp:Rating="3" xmp:CreatorTool="a program of some name">'
        f"{about}<dc:title><rdf:Alt><rdf:li xml:lang='x-default'>DSC {number}</rdf:li></rdf:Alt></dc:title>"
        f"<dc:description><rdf:Alt>{said}</rdf:Alt></dc:description></rdf:Description></rdf:RDF></x:xmpmeta>"
        '<?xpacket end="w"?>'
    )


def xmp_beside(root: Path) -> None:
    for n in NUMBERS:
        draw(root / f"DSC{n:05d}.png", n)
        (root / f"DSC{n:05d}.{'png.' * (n % 2)}xmp").write_text(packet(n))


def written_as_xmp(root: Path) -> None:
    root.mkdir()
    for n in NUMBERS:
        draw(root / f"{n}.png", n)
        info = PngImagePlugin.PngInfo()
        info.add_itxt("XML:com.adobe.xmp", packet(n, "\ufeff"))
        image = Image.open(root / f"{n}.png")
        if n % 2:
            image.save(root / f"{n}.png", pnginfo=info)
        else:
            image.save(root / f"{n}.jpg", xmp=packet(n, "\ufeff").encode())
            (root / f"{n}.png").unlink()


def pages_with_front_matter(root: Path) -> None:
    """As a blog keeps them, in folders of their own."""
    for n in NUMBERS:
        draw(root / "assets" / f"{n}.png", n)
        (root / "_posts").mkdir(exist_ok=True)
        page = f'---\nlayout: post\ntitle: "{caption(n)}"\ncover:\n  image: /assets/{n}.png\n---\n\nMore of it.\n'
        (root / "_posts" / f"2024-01-{n}-entry.md").write_text(page)


def pages_about_pictures(root: Path) -> None:
    for n in NUMBERS:
        draw(root / "assets" / f"{n}.png", n)
        (root / f"note{n * 7}.md").write_text(f"---\nimage: assets/{n}.png\nrating: {n}\n---\n{caption(n)}\n")


def documents_elsewhere(root: Path) -> None:
    """A JSON document for each picture, under a name of its own."""
    for n in NUMBERS:
        draw(root / "img" / f"{n}.png", n)
        (root / "docs").mkdir(exist_ok=True)
        told = {"asset": {"path": f"img/{n}.png", "width": 40}, "what": caption(n)}
        (root / "docs" / f"{900 - 13 * n:x}f.json").write_text(json.dumps(told))


def folder_of_each_picture(root: Path) -> None:
    for n in NUMBERS:
        folder = root / f"item_{n}"
        draw(folder / "images" / "main.png" if n % 2 else folder / "main.png", n)
        (folder / "description.txt").write_text(caption(n) + "\n")
        (folder / "LICENSE.txt").write_text("All rights are kept by those who made the pictures.\n")


def names_of_files(root: Path) -> None:
    for n in NUMBERS:
        draw(root / f"{caption(n).replace(', ', ' ').replace(' ', '_')}_{'abcdefghijklmnopqrstu'[n] * 3}.png", n)


ODD: dict[str, Callable[[Path], None]] = {
    make.__name__: make
    for make in (
        *(texts_elsewhere, json_of_names, table_of_ids, json_beside, unquoted_table, numbered_lines),
        *(other_separators, lines_in_order, table_of_each_album, yaml_of_names, xml_of_each_picture, one_xml, gallery),
        *(texts_of_a_language, written_in_the_pictures, written_as_exif),
        *(sections_of_each_album, lines_of_quoted_names, database, xmp_beside, written_as_xmp),
        *(pages_with_front_matter, pages_about_pictures, documents_elsewhere, folder_of_each_picture),
    )
}


def records(config: str) -> list[dict]:
    """What ingest reads by the config's sources."""
    ingest = load(config).stages.ingest
    sources.listing(ingest)
    reader = Reader(ingest, 0)
    return [row for item in sources.items(ingest) for row in reader.read(item)]


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


@pytest.mark.parametrize("layout", ODD)
def test_captions_in_odd_places(here, layout):
    ODD[layout](here / "photos")
    made = init(str(here / "photos"), machine=HERE)
    found = {row["height"] - 24: row.get("captions") for row in records(str(made.file)) if "code" not in row}
    assert found == {n: [caption(n)] for n in NUMBERS}
    assert len(load(str(made.file)).stages.ingest.sources) == 1  # the captions are no source of their own
    assert made.corpus.captioned == made.corpus.records("image") == len(NUMBERS)


def test_what_a_camera_writes_into_every_picture_is_no_caption(here):
    for n in NUMBERS:
        draw(here / "photos" / f"{n}.png", n)
        info = PngImagePlugin.PngInfo()
        info.add_text("Description", "OLYMPUS DIGITAL CAMERA")
        Image.open(here / "photos" / f"{n}.png").save(here / "photos" / f"{n}.png", pnginfo=info)
    assert init(str(here / "photos"), machine=HERE).corpus.captioned == 0


def test_what_a_folder_of_many_pictures_says_is_no_caption(here):
    for n in range(40):
        draw(here / "photos" / f"class{n % 2}" / f"{n}.png", n)
    for kind in (0, 1):
        (here / "photos" / f"class{kind}" / "readme.txt").write_text(f"These are the pictures of the class {kind}.")
    assert not init(str(here / "photos"), machine=HERE).manifests


def test_a_licence_in_the_folder_of_each_picture_is_no_caption(here):
    for n in NUMBERS:
        draw(here / "photos" / f"item_{n}" / "main.png", n)
        (here / "photos" / f"item_{n}" / "LICENSE.txt").write_text("All rights are kept.\n")
    assert not init(str(here / "photos"), machine=HERE).manifests


def test_boxes_of_a_detector_are_no_captions(here):
    for n in NUMBERS:
        draw(here / "data" / "images" / f"{n}.png", n)
        labels = here / "data" / "labels" / f"{n}.txt"
        labels.parent.mkdir(parents=True, exist_ok=True)
        labels.write_text("0 0.5 0.5 0.25 0.125\n")
    made = init(str(here / "data"), machine=HERE)
    rows = records(str(made.file))
    assert len(rows) == len(NUMBERS) and not any(row.get("captions") for row in rows)


def test_captions_of_one_word_among_longer_ones_are_read_of_every_table(here):
    for n in NUMBERS:
        draw(here / "photos" / f"album {n % 3}" / f"{n // 3}.png", n)
    for album in range(3):
        rows = [
            f"{n // 3}.png,{'shamrock' if n == NUMBERS[album] else caption(n).replace(',', '')}\n"
            for n in NUMBERS
            if n % 3 == album
        ]
        (here / "photos" / f"album {album}" / "captions.csv").write_text("photo,says\n" + "".join(rows))
    made = init(str(here / "photos"), machine=HERE)
    assert made.corpus.captioned == len(NUMBERS) and len(made.corpus.sources) == 1


def test_captions_that_a_source_reads_need_no_manifest(here):
    for n in NUMBERS:
        draw(here / "photos" / "train" / f"{n}.png", n)
    lines = [json.dumps({"file_name": f"{n}.png", "text": caption(n)}) + "\n" for n in NUMBERS]
    (here / "photos" / "train" / "metadata.jsonl").write_text("".join(lines))
    made = init(str(here / "photos"), machine=HERE)
    assert not made.manifests and made.corpus.captioned == len(NUMBERS)
    assert {row["height"] - 24: row["captions"] for row in records(str(made.file))} == {
        n: [caption(n)] for n in NUMBERS
    }


def test_names_that_say_what_is_on_a_picture(here):
    names_of_files(here / "photos")
    made = init(str(here / "photos"), machine=HERE)
    assert {row["captions"][0][:-4] for row in records(str(made.file))} == {
        caption(n).replace(",", "") for n in NUMBERS
    }
    assert named(["cat/1.png", "cat/2.png", "dog/3.png", "dog/4.png"]) == "folder"
    assert named([f"{split}/{n}.png" for split in ("train", "test") for n in range(4)]) is None
    assert named([f"IMG_{n:04d}.png" for n in range(40)]) is None


def test_the_config_plans_as_written_and_explains_every_line(here):
    texts_elsewhere(here / "photos")
    made = init(str(here / "photos"), machine=HERE)
    plan = make_plan(load(str(made.file), files=True))
    assert [stage.name for stage in plan.to_execute] == [
        "ingest",
        "tokenizer_image",
        "pretokenize",
        "train",
        "evaluate",
    ]
    lines = made.file.read_text().splitlines()
    for before, line in zip(["", *lines], lines):
        assert "#" in line or before.strip().startswith("#"), f"nothing explains {line!r}"
    assert yaml.safe_load(made.file.read_text())["stages"]["train"]["workers"] == {"count": 2}


def test_a_step_costs_no_more_where_captions_are_long(here):
    """Rows have room for four captions of 400 letters; a first result takes as long as of short ones."""
    for n in NUMBERS:
        draw(here / "photos" / f"{n}.png", n)
        (here / "photos" / f"{n}.txt").write_text(f"{caption(n)}, " * 20)
    init(str(here / "photos"), "long.yaml", machine=HERE)
    texts_elsewhere(here / "others")
    init(str(here / "others"), "short.yaml", machine=HERE)
    long, short = (load(name).stages.train for name in ("long.yaml", "short.yaml"))
    assert short.batch_rows == 8 and long.packing.length > 3 * short.packing.length
    assert long.batch_rows * long.packing.length <= 1.2 * short.batch_rows * short.packing.length
    assert long.batch_rows % long.workers.most == 0


def test_sizes_follow_the_machine_and_the_data(here):
    texts_elsewhere(here / "photos")
    one = init(str(here / "photos"), "one.yaml", machine=Machine(cpus=1, memory=4 << 30))
    assert one.sizes.workers == 1 and load("one.yaml").stages.evaluate.cpus == 1
    gpu = init(str(here / "photos"), "gpu.yaml", machine=Machine(64, 512 << 30, 4, 80 << 30))
    assert gpu.sizes.name == "small"  # a dozen pictures are not for a base model
    train = load("gpu.yaml").stages.train
    assert train.workers.count == 4 and train.workers.gpus == 1 and train.engine.precision == "bf16"
    # Pictures of 31 to 42 pixels a side are not blown up to 64.
    assert gpu.sizes.side == 32 and load("gpu.yaml").stages.pretokenize.image_size == 32
    assert init(str(here / "photos"), "base.yaml", "base", Machine(2, 8 << 30)).sizes.name == "base"


STEPS = {"tokenizer_image": 0.5, "tokenizer_joint": 2.0, "train": 1.0}  # seconds of one, as if they were measured


@pytest.fixture
def timed(monkeypatch, tmp_path) -> None:
    """A machine whose steps take `STEPS`; what real ones take, a slow test asks."""
    monkeypatch.setenv("OMNILOOM_CACHE", str(tmp_path / "cache"))

    def measure(config):
        for name in set(STEPS) & set(config.stages.configured()):
            stage = getattr(config.stages, name)
            if name != "train":
                measuring.write(measuring._tokenizer_file(stage), MeasuredTokenizer(STEPS[name], 1000, "2026-11-28"))
        return {name: {"seconds_per_step": STEPS[name]} for name in STEPS if name in config.stages.configured()}

    monkeypatch.setattr(measuring, "measure", measure)


def test_there_are_as_many_steps_as_there_is_time_for(here, timed):
    """400 steps of half a second and 800 of one are 1,000 s; in four minutes there is room for 24 per cent of them."""
    texts_elsewhere(here / "photos")
    made = init(str(here / "photos"), "short.yaml", minutes=4)
    stages = load("short.yaml").stages
    assert (stages.tokenizer_image.steps, stages.train.steps) == (100, 190)
    assert stages.tokenizer_image.loss.adversarial_start == 50
    assert stages.train.engine.ema_decay == pytest.approx(1 - 1 / (0.625 * 190), abs=1e-4)
    assert "one takes 1 s here" in made.file.read_text() and "tokenizer_image 50 s" in made.takes
    init(str(here / "photos"), "usual.yaml")  # eight minutes
    assert load("usual.yaml").stages.train.steps == 380
    init(str(here / "photos"), "long.yaml", minutes=60)  # the size has no more
    assert load("long.yaml").stages.train.steps == 800
    assert load("long.yaml").stages.train.engine.ema_decay == 0.998
    init(str(here / "photos"), "least.yaml", minutes=0.1)
    assert load("least.yaml").stages.train.steps == 50


@pytest.mark.slow
def test_steps_are_timed_here_and_the_plan_knows_it(here, monkeypatch):
    monkeypatch.setenv("OMNILOOM_CACHE", str(here / "cache"))
    texts_elsewhere(here / "photos")
    made = init(str(here / "photos"), minutes=0.5)
    found = takes.of(make_plan(load(str(made.file), files=True)))
    assert set(made.sizes.step_seconds) == {"tokenizer_image", "train"} and 50 <= made.sizes.steps("train") < 800
    stages = load(str(made.file)).stages
    for name, seconds in made.sizes.step_seconds.items():
        assert found[name].seconds == pytest.approx(seconds * getattr(stages, name).steps, rel=0.02)


def test_text_alone_makes_a_language_model(here):
    (here / "books").mkdir()
    for n in NUMBERS:
        (here / "books" / f"{n}.txt").write_text(f"{caption(n)}. " * 40)
    made = init(str(here / "books"), machine=HERE)
    stages = load(str(made.file)).stages
    assert stages.configured() == ["ingest", "pretokenize", "train", "evaluate"] and stages.train.objectives == {}


def test_pictures_and_text_share_the_rows(here):
    texts_elsewhere(here / "set")
    (here / "set" / "books").mkdir()
    for n in range(30):
        (here / "set" / "books" / f"tale{n}.txt").write_text("Once there was a square. " * 50)
    made = init(str(here / "set"), machine=HERE)
    assert made.corpus.kinds == ["image", "text"]
    assert load(str(made.file)).stages.train.packing.mixture == {"image": 0.74, "text": 0.26}
    read = records(str(made.file))
    assert sum(row.get("kind") == "text" for row in read) == 30  # none of the captions is read as a text


def test_nothing_is_written_over(here, omniloom):
    texts_elsewhere(here / "photos")
    for name in ("photos.yaml", "photos.captions.jsonl"):
        Path(name).write_text("mine")
        with pytest.raises(InputError, match="is there already"):
            init(str(here / "photos"), machine=HERE)
        assert [path.name for path in Path().iterdir()] == [name] and Path(name).read_text() == "mine"
        Path(name).unlink()
    with pytest.raises(InputError, match=r"ends in \.yaml"):
        init(str(here / "photos"), "photos", machine=HERE)
    with pytest.raises(InputError, match="expected one of tiny, small, base"):
        init(str(here / "photos"), size="huge", machine=HERE)
    code, _, err = omniloom("init", str(here / "nowhere"))
    assert code == 2 and "nowhere" in err


def test_the_command(here, timed, omniloom):
    texts_elsewhere(here / "photos")
    code, out, _ = omniloom("init", str(here / "photos"), "--json")
    made = json.loads(out)
    assert code == 0 and made["config"] == "photos.yaml" and made["sources"][0]["captioned"] == len(NUMBERS)
    code, out, _ = omniloom("init", str(here / "photos"), "--out", "again.yaml")
    assert code == 0 and "omniloom run again.yaml" in out and "omniloom sample again.yaml --prompt" in out
    assert "predicted: " in out and "none were found" not in out
    assert omniloom("plan", "again.yaml")[0] == 0
    for n in NUMBERS:
        draw(here / "bare" / f"{n}.png", n)
    code, out, _ = omniloom("init", str(here / "bare"))
    assert code == 0 and "captions: none were found" in out and "omniloom sample" not in out
