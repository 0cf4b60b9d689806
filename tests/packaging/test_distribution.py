"""The wheel and the sdist as users get them, installed where nothing of this checkout can be seen."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

import lightning_gradguard
from lightning_gradguard.environment import VARIABLE

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("user_script.py")
SITE = Path(sysconfig.get_path("purelib"))


def run(python: Path | str, *arguments: str, cwd: Path, **environment: str) -> str:
    """What a command of this Python prints; the checkout is not on its path."""
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", VARIABLE)}
    result = subprocess.run(
        [str(python), *arguments], cwd=cwd, env={**kept, **environment}, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Wheel and sdist of this tree; nothing is downloaded."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "hatchling", "build", "-d", str(folder), cwd=ROOT)
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, sdist


@pytest.fixture(scope="module")
def python(built: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a fresh environment: the wheel is installed there, all else is that of this environment."""
    folder = tmp_path_factory.mktemp("fresh")
    venv.create(folder, symlinks=True, with_pip=False)
    site = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder)}))
    install = ("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-compile", "--target", str(site))
    run(sys.executable, *install, str(built[0]), cwd=folder)
    # A plain line adds the folder without what is linked into it, such as this checkout.
    (site / "rest.pth").write_text(f"{SITE}\n", encoding="utf-8")
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def trained(python: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder in which the user's script has run, and what it printed."""
    folder = tmp_path_factory.mktemp("user")
    return folder, run(python, "-W", "ignore", str(SCRIPT), cwd=folder)


def names_in(script: Path) -> set[str]:
    """What a script imports from the package."""
    imports = [
        node for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))) if isinstance(node, ast.ImportFrom)
    ]
    return {name.name for node in imports if node.module == "lightning_gradguard" for name in node.names}


def test_the_users_script_uses_every_public_name() -> None:
    assert names_in(SCRIPT) == set(lightning_gradguard.__all__)


def test_it_trains_with_the_installed_wheel(trained: tuple[Path, str], python: Path) -> None:
    printed = trained[1]
    assert f"version {lightning_gradguard.__version__}" in printed
    assert str(python.parents[1]) in printed and str(ROOT) not in printed


def test_the_variable_watches_there_through_the_installed_entry_points(python: Path, tmp_path: Path) -> None:
    printed = run(python, "-c", WITH_AND_WITHOUT, cwd=tmp_path, **{VARIABLE: "1"})
    assert printed.splitlines()[-2:] == ["with [3]", "without []"]


def test_the_tab_is_found_by_tensorboard_and_has_its_files(trained: tuple[Path, str], python: Path) -> None:
    program = (
        "from tensorboard import default; from lightning_gradguard.tensorboard.assets import read_assets;"
        "print([p.__module__ for p in default.get_dynamic_plugins() if 'gradguard' in p.__module__]);"
        "print(sorted(name for name, content in read_assets().items() if content))"
    )
    listed, found = map(ast.literal_eval, run(python, "-c", program, cwd=trained[0]).splitlines())
    assert listed == ["lightning_gradguard.tensorboard.loader"]
    static = ROOT / "lightning_gradguard" / "tensorboard" / "static"
    assert found == sorted(path.name for path in static.iterdir() if path.suffix in (".js", ".css"))


def test_a_report_is_written(trained: tuple[Path, str], python: Path) -> None:
    folder = trained[0]
    assert "regression" in run(python, "-m", "lightning_gradguard", "report", "runs", "--out", "page.html", cwd=folder)
    assert "<html" in (folder / "page.html").read_text(encoding="utf-8")


def test_it_is_clean_under_mypy_strict_and_mistakes_are_not(python: Path, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT.read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "mistakes.py").write_text(MISTAKES, encoding="utf-8")
    config = (ROOT / "pyproject.toml").read_text(encoding="utf-8") + STRICT
    (tmp_path / "pyproject.toml").write_text(config, encoding="utf-8")
    if (ROOT / ".mypy_cache").is_dir():  # torch and lightning are read once for this checkout, which takes a minute
        shutil.copytree(ROOT / ".mypy_cache", tmp_path / ".mypy_cache")
    command = [str(python), "-m", "mypy", "script.py", "mistakes.py"]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False).stdout
    found = set(re.findall(r"^(.+):(\d+): error", said, flags=re.M))
    wrong = [str(number) for number, line in enumerate(MISTAKES.splitlines(), 1) if "# wrong" in line]
    assert found == {("mistakes.py", number) for number in wrong}, said


WITH_AND_WITHOUT = f"""
import os
from lightning.pytorch import Trainer
from lightning.pytorch.demos.boring_classes import BoringModel
quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
for case in ("with", "without"):
    trainer = Trainer(max_steps=3, limit_val_batches=0, accelerator="cpu", log_every_n_steps=1, **quiet)
    trainer.fit(BoringModel())
    ours = [c for c in trainer.callbacks if type(c).__module__.startswith("lightning_gradguard")]
    print(case, [len(callback.records) for callback in ours])
    os.environ.pop("{VARIABLE}", None)
"""
MISTAKES = """\
from lightning_gradguard import GradGard  # wrong: no such name
from lightning_gradguard import GradGuard, NonFiniteGuard, StepRecord, ZClip

GradGuard(clip="zclip")  # wrong: a word for a policy
GradGuard(on_nonfinite="ignore")  # wrong: no such action
ZClip(zz=3.0)  # wrong: no such argument
guard = NonFiniteGuard()
norm: str = guard.records[0].total_norm  # wrong: a float


def f(record: StepRecord) -> float:
    return record.total_nrom  # wrong: no such field
"""


# What --strict asks of the user's own files, beyond what this project asks. All else is read as this project reads it,
# so that what mypy already knows of torch and lightning holds.
STRICT = """
[[tool.mypy.overrides]]
module = ["script", "mistakes"]
disallow_any_generics = true
disallow_subclassing_any = true
disallow_untyped_calls = true
disallow_untyped_decorators = true
disallow_untyped_defs = true
warn_return_any = true
warn_unused_ignores = true
strict_equality = true
extra_checks = true
"""


def description(wheel: Path) -> str:
    """What the package index shows."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return str(Parser().parsestr(archive.read(name).decode("utf-8")).get_payload())


def test_the_package_index_shows_the_readme_without_what_lies_beside_it(built: tuple[Path, Path]) -> None:
    shown, readme = description(built[0]), (ROOT / "README.md").read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)]+)\)", readme)
    assert len(targets) > 5 and all((ROOT / target.partition("#")[0]).exists() for target in targets)
    assert re.findall(r"\]\((?!https?://)", shown) == [], "a link that leads nowhere there"
    assert "the tab, every rule of the diagnosis" in " ".join(shown.split()), "the words of a link stay"
    blocks = re.compile(r"```.*?```|^\|.*?$|^#.*?$", re.DOTALL | re.MULTILINE)
    kept = [block for block in blocks.findall(readme) if "](" not in block]
    assert [block for block in blocks.findall(shown) if block in kept] == kept, "code, tables and headings are whole"


def test_the_wheel_holds_the_package_and_nothing_else(built: tuple[Path, Path]) -> None:
    tracked = {str(path.relative_to(ROOT)) for path in (ROOT / "lightning_gradguard").rglob("*") if path.is_file()}
    with zipfile.ZipFile(built[0]) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == {name for name in tracked if "__pycache__" not in name}
    assert "lightning_gradguard/py.typed" in names


def test_the_sdist_makes_the_same_wheel_and_holds_what_readme_links_to(
    built: tuple[Path, Path], tmp_path: Path
) -> None:
    wheel, sdist = built
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    (source,) = tmp_path.iterdir()
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "again"), cwd=source)
    (again,) = (tmp_path / "again").glob("*.whl")
    assert again.read_bytes() == wheel.read_bytes()
    for target in re.findall(r"\]\(([^)#]+)", (source / "README.md").read_text(encoding="utf-8")):
        assert target.startswith("http") or (source / target).exists(), target
    assert not {path.name for path in source.iterdir()} & {".venv", ".venv-lower", ".venv-clients", "runs", ".git"}
