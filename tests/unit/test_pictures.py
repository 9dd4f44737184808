"""Pictures of tables: every form of a cell, shown as a viewer shows them."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageCms

from vidalign.data.pictures import picture, shown
from vidalign.data.source import open_source
from vidalign.errors import DataError

WHITE, RED, BLUE = (255, 255, 255), (255, 0, 0), (0, 0, 255)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def halves(size: tuple[int, int] = (20, 10)) -> Image.Image:
    """Red with a blue upper half."""
    image = Image.new("RGB", size, RED)
    image.paste(BLUE, (0, 0, size[0], size[1] // 2))
    return image


def seen(value: Any, folder: Path = Path()) -> np.ndarray:
    found = picture(value, folder)
    assert found.mode == "RGB"
    return np.asarray(found)


def only(path: Path) -> Any:
    (example,) = open_source(str(path), 0).first(9)
    return example


# --- cells ---


def cells(folder: Path) -> dict[str, tuple[Any, int]]:
    """Cells by their form, with the number of pictures."""
    halves().save(folder / "p.png")
    data = encoded(halves())
    return {
        "bytes": (data, 1),
        "list of bytes": ([data, data], 2),
        "struct": ({"bytes": data, "path": None}, 1),
        "list of structs": ([{"bytes": data, "path": "x.png"}], 1),
        "struct with a path": ({"bytes": None, "path": "p.png"}, 1),
        "path": ("p.png", 1),
        "list of paths": (["p.png", "p.png", "p.png"], 3),
        "nothing": (None, 0),
        "an empty list": ([], 0),
    }


@pytest.mark.parametrize("column", ["image", "images"])
@pytest.mark.parametrize("form", cells(Path("/tmp")))
def test_forms_of_a_cell(form: str, column: str, tmp_path: Path) -> None:
    value, count = cells(tmp_path)[form]
    pq.write_table(pa.table({"prompt": ["q"], column: pa.array([value])}), tmp_path / "t.parquet")
    images = only(tmp_path / "t.parquet").images
    assert len(images) == count
    assert all(np.array_equal(np.asarray(image), np.asarray(halves())) for image in images)


def test_columns_with_metadata_of_datasets(tmp_path: Path) -> None:
    turned = {"bytes": encoded(halves(), "JPEG", exif=orientation(3), quality=100), "path": None}
    table = datasets.Dataset.from_dict({"prompt": ["q"], "image": [turned]}).cast_column("image", datasets.Image())
    table.to_parquet(str(tmp_path / "t.parquet"))
    assert np.asarray(only(tmp_path / "t.parquet").images[0])[8, 10, 2] > 200, "the blue half is below"


def test_an_unused_column_of_pictures_is_reported(tmp_path: Path) -> None:
    data = encoded(halves())
    for cell in (data, {"bytes": data, "path": None}, [data], "a/b.JPG"):
        table = pa.table({"prompt": ["q"], "photo": pa.array([cell]), "note": ["photo of a cat"]})
        pq.write_table(table, tmp_path / "t.parquet")
        with pytest.warns(
            UserWarning, match=r"'photo' looks like pictures and is not used; .*columns=\{images: photo\}"
        ):
            assert only(tmp_path / "t.parquet").images == ()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pq.write_table(pa.table({"prompt": ["q"], "photo": [data]}), tmp_path / "t.parquet")
        chosen = {"name": "table", "path": str(tmp_path / "t.parquet"), "columns": {"images": "photo"}}
        assert len(open_source(chosen, 0)[0].images) == 1


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (b"no picture", "cannot be read: cannot identify"),
        (b"", "cannot be read: cannot identify"),
        (encoded(halves((200, 200)))[:200], "cannot be read"),
        ("gone.png", "cannot be read: .*No such file"),
        ("../x.png", "leads out of the folder"),
        (5, "it is no picture: '5'"),
        ([None], "it is no picture: 'None'"),
        (" ", "it is no picture"),
        ({"bytes": None, "path": None}, "it is no picture"),
    ],
)
def test_what_is_no_picture_is_refused_by_row(value: Any, message: str, tmp_path: Path) -> None:
    good = [encoded(halves())] if isinstance(value, list) else encoded(halves())
    pairs = [good if isinstance(value, type(good)) else None, value]
    pq.write_table(pa.table({"prompt": ["a", "b"], "images": pa.array(pairs)}), tmp_path / "t.parquet")
    source = open_source(str(tmp_path / "t.parquet"), 0)
    with pytest.raises(DataError, match=f"row 1 - .*{message}") as caught:
        source.first(2)
    assert "\n" not in str(caught.value)


# --- what a viewer shows ---


def orientation(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


@pytest.mark.parametrize(
    ("value", "top_is_blue", "shape"), [(1, True, (10, 20)), (3, False, (10, 20)), (6, None, (20, 10))]
)
def test_pictures_stand_upright(value: int, top_is_blue: bool | None, shape: tuple[int, int]) -> None:
    found = seen(encoded(halves(), "JPEG", exif=orientation(value), quality=100))
    assert found.shape[:2] == shape
    if top_is_blue is None:  # turned clockwise: what was above is at the right
        assert found[10, 8, 2] > 200 and found[10, 1, 0] > 200
    else:
        assert (found[1, 10, 2] > 200) == top_is_blue and (found[8, 10, 2] > 200) != top_is_blue


def test_16_bits_are_scaled() -> None:
    values = np.linspace(0, 65535, 200).astype(np.uint16).reshape(10, 20)
    found = seen(encoded(Image.fromarray(values)))
    assert np.array_equal(found[..., 0], (values / 257.0).round()) and len(np.unique(found)) > 190
    assert np.array_equal(seen(encoded(Image.fromarray(values), "TIFF")), found)
    real = np.linspace(0, 1, 200, dtype=np.float32).reshape(10, 20)
    assert np.array_equal(seen(encoded(Image.fromarray(real), "TIFF"))[..., 0], (real * 255).round())
    with pytest.raises(ValueError, match=r"its values lie in \[0, 9\], not in \[0, 1\]"):
        picture(encoded(Image.fromarray(real * 9), "TIFF"), Path())


def test_transparency_stands_on_white() -> None:
    clear = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    assert (seen(encoded(clear)) == 255).all(), "the colour under it is not seen"
    half = Image.new("RGBA", (4, 4), (0, 0, 0, 128))
    assert np.unique(seen(encoded(half))).tolist() == [127]
    grey = Image.new("LA", (4, 4), (0, 0))
    assert (seen(encoded(grey)) == 255).all()
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([255, 0, 0, 0, 0, 0])
    assert (seen(encoded(palette, transparency=1)) == 255).all()
    assert (seen(encoded(palette, transparency=b"\xff\x00")) == 255).all()
    key = Image.new("RGB", (4, 4), (0, 255, 0))
    assert (seen(encoded(key, transparency=(0, 255, 0))) == 255).all()


def test_cmyk_and_profiles() -> None:
    red = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    found = seen(encoded(red, "JPEG", quality=100))[4, 4]
    assert found[0] > 240 and found[1] < 40 and found[2] < 40
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert np.abs(seen(encoded(halves(), icc_profile=profile)).astype(int) - np.asarray(halves())).max() <= 1
    assert np.array_equal(seen(encoded(halves(), icc_profile=b"broken")), np.asarray(halves()))


def test_another_profile_changes_the_colours() -> None:
    """The profile is that of the picture: a swap of two of its primaries swaps the colours."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    places = {bytes(profile[k : k + 4]): k for k in range(128, 400) if profile[k : k + 4] in (b"rXYZ", b"bXYZ")}
    a, b = places[b"rXYZ"], places[b"bXYZ"]
    profile[a + 4 : a + 12], profile[b + 4 : b + 12] = profile[b + 4 : b + 12], profile[a + 4 : a + 12]
    found = seen(encoded(Image.new("RGB", (4, 4), RED), icc_profile=bytes(profile)))[0, 0]
    assert found[2] > 240 and found[0] < 20


def test_a_picture_that_moves_shows_its_first_frame() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, BLUE)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert seen(data)[0, 0].tolist() == list(RED)


def test_a_plain_picture_stays_as_it_is() -> None:
    assert np.array_equal(np.asarray(shown(halves())), np.asarray(halves()))
    for mode in ("1", "L", "P"):
        assert np.array_equal(
            np.asarray(shown(halves().convert(mode))), np.asarray(halves().convert(mode).convert("RGB"))
        )
