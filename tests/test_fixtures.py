"""The fixtures are whole: no file missing, none that is not listed, no byte changed."""

from __future__ import annotations

from tests.helpers import fixtures


def test_every_fixture_is_the_one_that_is_listed() -> None:
    listed = {name: digest for digest, name in (line.split("  ", 1) for line in fixtures.SUMS.read_text().splitlines())}
    there = fixtures.sums()
    assert there == listed and len(there) > 150


def test_nothing_that_may_not_be_passed_on() -> None:
    names = {path.name for path in fixtures.ROOT.iterdir()}
    assert names == {"ATTRIBUTION.md", "SHA256SUMS", "cases", "detector", "parity", "photos", "videos"}
    assert {path.name for path in fixtures.PHOTOS.iterdir()} == {"free", "free_unannotated"}
    said = (fixtures.ROOT / "ATTRIBUTION.md").read_text()
    pictures = (path for folder in (fixtures.PHOTOS, fixtures.VIDEOS) for path in folder.rglob("*") if path.is_file())
    assert not [path.name for path in pictures if f"{path.name}`" not in said]
