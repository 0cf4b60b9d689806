"""Files appear whole or not at all."""

import pytest

from lightning_gradguard.report.files import write_whole


def test_an_interrupted_write_leaves_the_old_page(tmp_path):
    page = tmp_path / "report.html"
    page.write_text("old")
    with pytest.raises(UnicodeEncodeError):
        write_whole(page, "new \ud800")
    assert page.read_text() == "old"
    assert list(tmp_path.iterdir()) == [page]
