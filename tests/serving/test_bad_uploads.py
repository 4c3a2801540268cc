"""Damaged, hostile and odd files sent to the service: an answer or a problem, never a failure of ours."""

from __future__ import annotations

from pathlib import Path

import pytest

from self1e.serving import schemas

pytestmark = pytest.mark.usefixtures("one_thread")

REFUSED = [
    "pillow/bmp_b_badwidth.bmp",
    "pillow/broken.png",
    "pillow/crash-2020-10-test.tif",
    "pillow/png_decompression_dos.png",
    "pillow/timeout-c8efc3fded6426986ba867a399791bae544f59bc.psd",
    "pillow/truncated_image.png",
    "pillow/LICENSE",
]
TAKEN = [
    "pillow/decompression_bomb_extents.gif",
    "pillow/hopper_orientation_6.jpg",
    "pillow/tRNS_null_1x1.png",
    "pngsuite/basi0g16.png",
]


@pytest.fixture(scope="module")
def folder(find_shared) -> Path:
    return find_shared("SELF1E_BAD_IMAGES", "data/4_bad_images")


@pytest.mark.parametrize("name", REFUSED)
def test_a_bad_file_is_refused(client, folder, name):
    answer = client.post(schemas.IMAGES, files={"picture": ("fine.png", (folder / name).read_bytes(), "image/png")})
    assert answer.status_code == 422, answer.text
    assert answer.headers["content-type"] == schemas.PROBLEM_TYPE
    assert answer.json()["type"] == "urn:self1e:picture"
    assert str(folder) not in answer.text
    assert "0x" not in answer.text


@pytest.mark.parametrize("name", TAKEN)
def test_an_odd_file_is_taken(client, folder, name):
    answer = client.post(schemas.IMAGES, files={"picture": ("x.exe", (folder / name).read_bytes())})
    assert answer.status_code == 201, answer.text


@pytest.mark.slow
def test_no_file_of_all_makes_the_service_fail(client, folder):
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            content = path.read_bytes()
            answer = client.post(schemas.SEGMENT, files={"picture": (path.name, content)}, data={"queries": ["x"]})
            assert answer.status_code in (200, 413, 422), f"{path.name}: {answer.text}"
    assert client.get(schemas.READY).status_code == 200
