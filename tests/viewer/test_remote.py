"""The viewer shows slides where they lie, in an object store, as it shows those of a disk."""

import io

import numpy as np
from PIL import Image

from tests.support.images import make_image, write_pyramid
from tests.support.runs import embed
from tests.support.s3_server import s3_bucket
from tests.support.viewing import ask


def test_a_slide_in_a_bucket_is_shown_as_the_local_file_is(tmp_path):
    slide = write_pyramid(tmp_path / "a.tif", make_image(900, 1300, 3), levels=2, compression="deflate")
    asked = [("/tiles/0/0/0/0.jpg",), ("/tiles/0/1/1/0.jpg",), ("/crops/0/7.jpg",)]
    with s3_bucket("lab") as client:
        client.upload_file(str(slide), "lab", "slides/a.tif")
        for address, output in ((slide, "here"), ("s3://lab/slides/a.tif", "there")):
            assert embed(address, tmp_path / output).exit_code == 0
        here, there = (ask(tmp_path / output, asked, roots=["s3://lab/slides"]) for output in ("here", "there"))
        unnamed = ask(tmp_path / "there", asked)
    assert [code for code, _ in there] == [200] * len(asked)
    assert there == here
    assert np.ptp(np.asarray(Image.open(io.BytesIO(there[2][1])))) > 50
    assert unnamed != here  # the stored thumbnail: nothing is fetched on the word of a store alone
