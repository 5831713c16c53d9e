"""The wheel holds the package and nothing else, and works beside a `jobs` package of the user's."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # building leaves files in the source folder
    shutil.copytree(ROOT / "kmeans_dask", source / "kmeans_dask", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "jobs", source / "jobs")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", folder]
    subprocess.run([*pip, source], check=True, timeout=200)
    (built,) = folder.glob("*.whl")
    return built


def test_wheel_holds_every_file_of_the_package(wheel: Path):
    with zipfile.ZipFile(wheel) as archive:
        files = {name for name in archive.namelist() if ".dist-info/" not in name}

    modules = ROOT.glob("kmeans_dask/**/*.py")
    templates = (path for path in ROOT.glob("kmeans_dask/report/templates/*") if path.is_file())
    expected = {path.relative_to(ROOT).as_posix() for path in (*modules, *templates, ROOT / "kmeans_dask/py.typed")}
    assert files == expected
    assert any(name.endswith(".js") for name in files)


def test_installed_command_works_beside_a_package_jobs(wheel: Path, tmp_path: Path):
    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", site, wheel]
    subprocess.run(pip, check=True, timeout=200)
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "__init__.py").write_text("raise RuntimeError('a folder of the user')")
    environ = {**os.environ, "PYTHONPATH": str(site), "NUMBA_CACHE_DIR": str(tmp_path / "numba")}
    config = ROOT / "configs" / "digits.yaml"
    keys = ["fit={k: 10}", "report={samples: 4}", "cluster.kind=threads"]

    def python(*words: object) -> str:
        command = [sys.executable, *map(str, words)]
        options: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 280, "check": False}
        done = subprocess.run(command, cwd=tmp_path, env=environ, **options)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    assert python("-c", "import kmeans_dask; print(kmeans_dask.__file__)").startswith(str(site))
    assert "accuracy" in python("-m", "kmeans_dask", "run", config, *keys)
    assert (tmp_path / "runs" / "digits" / "report.html").stat().st_size > 50_000
    assert "kmeans-dask, version" in python(site / "bin" / "kmeans-dask", "--version")
