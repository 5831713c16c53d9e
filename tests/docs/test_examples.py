"""The example files that the documentation prints or names are allowed."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from kmeans_dask.config.loading import load_config
from tests.support.documents import ROOT, load_hook

CLUSTERS = sorted(path.name for path in ROOT.glob("configs/cluster-*.yaml"))


@pytest.mark.parametrize("cluster", CLUSTERS)
def test_cluster_files_are_allowed(cluster: str):
    config = load_config(ROOT / "configs" / "digits.yaml", cluster=str(ROOT / "configs" / cluster))

    assert config.cluster.kind == ("address" if cluster == "cluster-docker.yaml" else Path(cluster).stem[8:])


def test_cluster_page_prints_every_cluster_file():
    printed = load_hook("reference_pages").cluster_files()

    assert [name for name in CLUSTERS if (ROOT / "configs" / name).read_text(encoding="utf-8") not in printed] == []


def test_compose_starts_what_the_cluster_file_names():
    services = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text(encoding="utf-8"))["services"]
    config = load_config(ROOT / "configs" / "digits.yaml", cluster=str(ROOT / "configs" / "cluster-docker.yaml"))

    assert set(services) == {"scheduler", "worker", "job"}
    assert not any("ports" in service for service in services.values())
    assert config.cluster.address in services["worker"]["command"]
    assert "configs/cluster-docker.yaml" in services["job"]["command"]
