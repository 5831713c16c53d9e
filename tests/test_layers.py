"""The layers of DESIGN.md, held by reading the imports of every module, also those inside functions."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

FROM_THE_BOTTOM = """
config config_files errors object_store publish relisting normalize images kernels moments draws labels \
colours colour_spaces colour_starts colour_means grey_levels dither sprites painting palettes palette_files outputs \
extractors transformation
chunks careful store runs journal lock checkpoint \
sources.manifest sources.names sources.locations sources.listed sources.policies sources.folders sources.lists \
sources.archives sources.arrays sources.tables sources.datasets sources.downloads sources.places \
sources.ranges sources.items sources.reading sources decoding
reduction memory_plan estimate updating collection ingesting rows sampling seeding lloyd starting kmeans batches \
minibatch models metrics embeddings features feature_fit spread sketches evaluation second_look cluster_facts \
suspects duplicates choice prediction moves comparison model_files image_folders shared_palette quantize
cluster.security cluster.clocks cluster.kinds cluster.allocation cluster.watchdog cluster.spans cluster.connecting \
cluster.detached cluster.tasks cluster.watching \
cluster \
report plots colour_plots crosstabs projection thumbnails gallery colour_gallery
"""
LAYERS = [line.split() for line in FROM_THE_BOTTOM.strip().splitlines()]
"""Jobs lie above all of them; ``__init__`` only names what users import."""

ALLOWED = {
    "zarr": ["store"],
    "distributed": [name for name in LAYERS[3] if name.startswith("cluster.")],
    "PIL": ["images", "normalize", "painting", "palettes", "plots", "sprites"],
    "dask": [*LAYERS[2], *(name for name in LAYERS[3] if name.startswith("cluster."))],
    "dask_ml": ["feature_fit", "kmeans"],
    "skimage": ["extractors"],
    "jobs": [],
}
"""Modules of the package that may import a package; all others may not."""


def imports_of(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return names


def modules_of(package: str) -> dict[str, set[str]]:
    """Imports of every module under its dotted name, a sub-package's own under the sub-package's."""
    folder = Path(__file__).parents[1] / package
    paths = [path for path in folder.rglob("*.py") if path != folder / "__init__.py"]
    names = [".".join(path.relative_to(folder).with_suffix("").parts).removesuffix(".__init__") for path in paths]
    return dict(zip(names, map(imports_of, paths), strict=True))


MODULES = modules_of("kmeans_dask")
OURS = {
    module: {name.removeprefix("kmeans_dask.") for name in imports if name.startswith("kmeans_dask.")} & MODULES.keys()
    for module, imports in MODULES.items()
}
"""Modules of the package that each of its modules imports."""


def test_every_module_is_in_one_layer():
    assert sorted(module for layer in LAYERS for module in layer) == sorted(MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_downwards(module: str):
    level = next(level for level, layer in enumerate(LAYERS) if module in layer)

    assert OURS[module] <= {other for layer in LAYERS[: level + 1] for other in layer}


def test_imports_make_no_circle():
    assert set(TopologicalSorter(OURS).static_order()) == OURS.keys()


@pytest.mark.parametrize("package", ALLOWED)
def test_who_imports_a_package(package: str):
    importing = {
        module for module, names in MODULES.items() if any(f"{name}.".startswith(f"{package}.") for name in names)
    }

    assert importing <= set(ALLOWED[package])


def test_jobs_leave_files_and_pixels_to_the_package():
    for module, names in modules_of("jobs").items():
        assert {name.partition(".")[0] for name in names}.isdisjoint({"zarr", "PIL"}), module
