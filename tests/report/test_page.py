import base64
import json
import re

import pytest

from lightning_gradguard.report.page import build_page
from lightning_gradguard.report.runs import read_runs
from lightning_gradguard.tensorboard.assets import read_assets
from tests.tensorboard.synthetic import busy_run, make_record, with_every_norm, write_run


def read_pictures(folder):
    return [picture for run in read_runs(folder)[0] for picture in run.pictures]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    write_run(folder / "busy", busy_run(num_records=40))
    return build_page(read_pictures(folder), "Gradients of <mine>")


def modules_of(page):
    imports = json.loads(re.search(r'<script type="importmap">(.*?)</script>', page)[1])["imports"]
    return {name: base64.b64decode(address.partition(",")[2]).decode() for name, address in imports.items()}


def test_every_module_of_the_tab_is_in_the_page_and_finds_the_others(page):
    modules = modules_of(page)
    assert set(modules) == {f"gradguard/{name}" for name in read_assets() if name.endswith(".js")}
    for name, source in modules.items():
        assert '"./' not in "".join(re.findall(r"^.*\bfrom .*$", source, re.MULTILINE)), name
        for wanted in re.findall(r'(?:from|import) "([^"]+)"', source):
            assert wanted in modules, f"{name} imports {wanted}"


def test_the_page_asks_for_no_other_file(page):
    without_data = re.sub(r"data:[^\"]*", "", page)
    assert not re.search(r"""(src|href)=|https?://|url\(""", without_data)


def test_the_title_is_text(page):
    assert "<title>Gradients of &lt;mine&gt;</title>" in page


def test_the_data_hold_every_measured_statistic(page):
    data = json.loads(re.search(r'id="gradguard-report">(.*?)</script>', page)[1])
    assert [key.split("\n")[2] for key in data["flows"]] == ["norm", "ratio", "update", "coefficient"]
    (run,) = data["runs"]
    assert {"name": "busy", "layers": 26, "last_step": 390, "optimizers": [0], "nonfinite": 1}.items() <= run.items()
    assert run["finding"] is None


def test_a_name_cannot_end_the_script_it_stands_in(tmp_path):
    import numpy as np

    write_run(tmp_path / "run", iter([make_record(0, ("</script><script>alert(1)//", "b"), np.ones(2))]))
    assert "</script><script>alert" not in build_page(read_pictures(tmp_path), "t")


def test_the_total_norm_of_every_step_is_in_the_page(tmp_path):
    records = list(with_every_norm(busy_run(num_records=40)))
    write_run(tmp_path / "busy", iter(records))
    page = build_page(read_pictures(tmp_path), "t")
    (curve,) = json.loads(re.search(r'id="gradguard-report">(.*?)</script>', page)[1])["curves"].values()
    norms = [norm for record in records for norm in record.total_norms if norm == norm and norm < float("inf")]
    assert len(curve["steps"]) == len(curve["norms"]) == len(norms) > 40
