"""Labelled images: the same pixels from every kind of source, splits apart, faults named."""

import zipfile

import image_sets
import numpy as np
import pytest
import torch
from transformers import ViTImageProcessor

from compress.data.images import (
    Augmentation,
    ImageCollator,
    load_evaluation,
    load_images,
    read_processing,
)
from compress.data.images.augmenting import parse_augmentation
from compress.data.images.processing import decode, make_processor
from compress.data.images.prompting import SavedPrompt, apply_prompt, frame, read_prompt
from compress.data.images.reading import open_pictures
from compress.errors import RequestError


@pytest.fixture(scope="module")
def config():
    return image_sets.tiny_resnet().config


@pytest.fixture(scope="module")
def processing():
    return read_processing(None, 8)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return image_sets.write_folders(tmp_path_factory.mktemp("folders") / "digits")


def test_every_kind_of_source_gives_the_same_images(tmp_path, folders, config, processing):
    import datasets

    with zipfile.ZipFile(tmp_path / "digits.zip", "w") as archive:
        for path in sorted(folders.rglob("*.png")):
            archive.write(path, f"outer/{path.relative_to(folders)}")
    parquet = image_sets.write_parquet(tmp_path / "digits.parquet")
    datasets.Dataset.from_parquet(str(parquet), cache_dir=str(tmp_path)).save_to_disk(
        tmp_path / "saved"
    )
    seen = []
    for name in (folders, tmp_path / "digits.zip", parquet, tmp_path / "saved"):
        images = load_evaluation(str(name), processing, config).images
        rows = [(int(images.labels[n]), images.pixels(n).numpy().tobytes()) for n in range(120)]
        seen.append(sorted(rows))
    assert seen[0] == seen[1] == seen[2] == seen[3]


def test_splits_are_disjoint_and_the_draw_is_fixed(folders, config, processing):
    data = load_images(str(folders), processing, config)
    places = [set(part.pictures.places) for part in (data.train, data.validation, data.test)]
    assert sum(map(len, places)) == len(set.union(*places)) == 120
    for part, share in ((data.validation, 0.08), (data.test, 0.2)):
        counts = np.bincount(part.labels, minlength=10)
        assert counts.min() >= 1
        assert abs(len(part) / 120 - share) < 0.03
    assert len(data.notes) == 2
    again = load_images(str(folders), processing, config)
    assert again.digest() == data.digest()


def test_splits_of_the_source_are_taken_as_they_are(tmp_path, config, processing):
    image_sets.digit_splits(tmp_path, 60, 30, 20)
    data = load_images(str(tmp_path), processing, config)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [60, 30, 20]
    assert data.notes == ()


def test_a_validation_split_alone_is_what_is_reported(tmp_path, config, processing):
    image_sets.write_parquet(tmp_path / "train.parquet", 80)
    image_sets.write_parquet(tmp_path / "val.parquet", 30, 80)
    data = load_images(str(tmp_path), processing, config)
    assert len(data.test) == 30
    assert len(data.train) + len(data.validation) == 80
    assert "reported" in data.notes[0]


def test_the_two_halves_are_the_processor(tmp_path, folders):
    make_processor(12, (0.2, 0.4, 0.6), (0.3, 0.5, 0.7)).save_pretrained(tmp_path)
    ours = read_processing(tmp_path)
    stock = ViTImageProcessor.from_pretrained(tmp_path)
    for path in sorted(folders.rglob("*.png"))[:5]:
        data = path.read_bytes()
        wanted = stock(images=[decode(data)], return_tensors="pt")["pixel_values"][0]
        made = ours.normalise(ours.unit(ours.pixels(data)))
        assert (made - wanted).abs().max() < 1e-6


@pytest.mark.parametrize("kind", ["DeiT", "MobileNetV2", "ConvNext", "Bit", "Beit"])
def test_image_size_keeps_the_processors_way(kind, tmp_path, folders):
    import transformers

    getattr(transformers, f"{kind}ImageProcessorPil")().save_pretrained(tmp_path)
    some = next(iter(folders.rglob("*.png"))).read_bytes()
    assert read_processing(tmp_path, 24).pixels(some).shape == (3, 24, 24)


def test_classes_follow_names_not_numbers(tmp_path, config, processing):
    place = image_sets.write_folders(tmp_path / "x", names=[f"digit{9 - n}" for n in range(10)])
    images = load_evaluation(str(place), processing, config).images
    _, labels = image_sets.digit_pngs(120)
    assert sorted(images.labels.tolist()) == sorted(9 - label for label in labels)
    for path, label in zip(images.pictures.places, images.labels):
        assert f"digit{int(label)}/" in path


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("empty", "class folder `.*digit3` holds no image"),
        ("bad", "digit0/bad.png`: not an image"),
        ("torn", "digit0/torn.png`: a damaged image"),
        ("few", "digit11` of .* has 1 image"),
        ("flat", "holds no class folders"),
    ],
)
def test_faults_of_folders(tmp_path, processing, fault, said):
    place = image_sets.write_folders(tmp_path / "d", 60)
    good = next((place / "digit0").iterdir()).read_bytes()
    if fault == "empty":
        for path in (place / "digit3").iterdir():
            path.unlink()
    elif fault == "few":
        (place / "digit11").mkdir()
        (place / "digit11" / "a.png").write_bytes(good)
    elif fault == "flat":
        place = place / "digit0"
    else:
        content = b"no picture" if fault == "bad" else good[: len(good) // 2]
        (place / "digit0" / f"{fault}.png").write_bytes(content)
    with pytest.raises(RequestError, match=said):
        load_images(str(place), processing)


def test_skip_bad_counts(tmp_path, config, processing):
    place = image_sets.write_folders(tmp_path / "d", 100)
    for name in ("digit0/x.png", "digit1/y.jpg"):
        (place / name).write_bytes(b"")
    data = load_images(str(place), processing, config, skip_bad=True)
    assert data.skipped == 2
    assert sum(map(len, (data.train, data.validation, data.test))) == 100
    assert "2 images that can't be read" in data.notes[-1]


def test_faults_of_labels(tmp_path, processing):
    small = image_sets.tiny_resnet(classes=7).config
    named = image_sets.write_parquet(tmp_path / "a.parquet")
    with pytest.raises(RequestError, match=r"head has 7 classes, .* has 10") as caught:
        load_evaluation(str(named), processing, small)
    assert "--new-head" in caught.value.hint
    plain = image_sets.write_parquet(tmp_path / "b.parquet", names=False)
    above = sum(label > 6 for label in image_sets.digit_pngs(120)[1])
    said = rf"row 7: label 7 is outside .* 0 to 6 \({above} such rows\)"
    with pytest.raises(RequestError, match=said):
        load_evaluation(str(plain), processing, small)


def test_faults_of_sizes_and_processors(tmp_path, folders, config, processing):
    with pytest.raises(RequestError, match="8 pixels are smaller than the network's stride of 32"):
        load_images(str(folders), processing, config, least=32)
    with pytest.raises(RequestError, match=r"has no preprocessor_config\.json"):
        read_processing(tmp_path)
    with pytest.raises(RequestError, match="holds no labelled images"):
        open_pictures(str(next(iter(folders.rglob("*.png")))))
    with pytest.raises(RequestError, match="offline"):
        open_pictures("nobody/nothing")


def test_augmentation_depends_on_seed_epoch_and_row_alone(folders, config, processing):
    images = load_images(str(folders), processing, config).train
    for how in (Augmentation(), Augmentation(mixup=0.4)):
        make = ImageCollator(images, how, 3)
        rows = [{"row": row, "epoch": 2} for row in range(12)]
        whole = make(rows)
        apart = [make(rows[:5]), make(rows[5:])]
        for key, value in whole.items():
            assert torch.equal(value, torch.cat([part[key] for part in apart])), key
        other = make([{"row": row, "epoch": 3} for row in range(12)])["images"]
        assert not torch.equal(whole["images"], other)
    assert 0 <= float(whole["shares"].min()) <= float(whole["shares"].max()) <= 0.5


def test_flip_and_shift_are_what_they_say(folders, config, processing):
    images = load_images(str(folders), processing, config).train
    rows = [{"row": row, "epoch": 0} for row in range(40)]
    plain = images.processing.unit(torch.stack([images.pixels(row) for row in range(40)]))
    flipped = ImageCollator(images, Augmentation(crop=0), 0)(rows)["images"]
    same = [bool((a == b).all()) for a, b in zip(flipped, plain)]
    mirrored = [bool((a == b.flip(-1)).all()) for a, b in zip(flipped, plain)]
    assert all(a or b for a, b in zip(same, mirrored))
    assert 8 < sum(same) < 32
    moved = ImageCollator(images, Augmentation(flip=False, crop=2), 0)(rows)["images"]
    for image, base in zip(moved, plain):
        padded = torch.nn.functional.pad(base[None], [2] * 4, mode="reflect")[0]
        windows = [padded[:, t : t + 8, s : s + 8] for t in range(5) for s in range(5)]
        assert any(torch.equal(image, window) for window in windows)
    with pytest.raises(RequestError, match="--augment blur"):
        parse_augmentation(["blur"], None, 0.0)


def test_prompt_lies_on_the_frame_and_stays_in_range(tmp_path):
    mask = frame(8, 2)
    assert int(mask.sum()) == 4 * 2 * (8 - 2)
    assert int(frame(8, 4).sum()) == 64
    values = torch.full((3, 8, 8), 0.7)
    unit = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    made = apply_prompt(unit, values, mask)
    inside = (slice(None), slice(None), slice(2, 6), slice(2, 6))
    assert torch.equal(made[inside], unit[inside])
    assert float(made.max()) == 1.0
    assert bool((made[..., 0, :] >= unit[..., 0, :]).all())
    wider = apply_prompt(unit[..., :4, :4], values, mask)
    assert wider.shape == (2, 3, 8, 8)
    assert torch.equal(wider[inside], unit[..., :4, :4])
    saved = SavedPrompt(values * mask, 2, "pad", True)
    saved.save(tmp_path)
    again = read_prompt(tmp_path)
    assert again is not None
    assert again.needed
    assert torch.equal(again(unit), made)
    assert (tmp_path / "prompt.png").is_file()
    (tmp_path / "prompt.safetensors").write_bytes(b"nonsense")
    with pytest.raises(RequestError, match="is no prompt"):
        read_prompt(tmp_path)
