from __future__ import annotations

import re
from pathlib import Path

import pytest

from kmeans_dask.config.cluster import Tls
from kmeans_dask.config.loading import check_sources, load_config
from kmeans_dask.config.sections import Config
from kmeans_dask.errors import UserError

CONFIGS = Path(__file__).parents[2] / "configs"
JOBS = sorted(path.name for path in CONFIGS.glob("*.yaml") if not path.name.startswith("cluster-"))

FULL = """
name: full
input: {path: photos, holdout: 0.2}
ingest: {size: [8, 8]}
fit: {k: [3, 5]}
evaluate: {}
quantize: {k: 2}
report: {}
"""


@pytest.fixture
def full(tmp_path: Path) -> Path:
    path = tmp_path / "full.yaml"
    path.write_text(FULL)
    return path


def error_of(path: Path, *overrides: str, cluster: str | None = None) -> str:
    """Return the error message of an invalid config."""
    with pytest.raises(UserError) as caught:
        load_config(path, overrides, cluster)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", JOBS)
def test_example_configs_are_valid(name: str):
    config = load_config(CONFIGS / name)

    assert config.name == name.removesuffix(".yaml")
    assert config.report is not None


def test_example_cluster_files_are_valid():
    for path in CONFIGS.glob("cluster-*.yaml"):
        config = load_config(CONFIGS / JOBS[0], cluster=str(path))

        assert config.cluster.kind in path.read_text()


def test_defaults(full: Path):
    config = load_config(full)

    assert config.seed == 0
    assert config.output == "runs"
    assert config.input.labels == "folder"
    assert config.input.max_failed == 0.5
    assert config.ingest is not None
    assert config.ingest.mode == "RGB"
    assert config.fit is not None
    assert (config.fit.algorithm, config.fit.init, config.fit.engine) == (["kmeans"], "k-means||", "kmeans-dask")
    assert config.quantize is not None
    assert config.quantize.k == [2]  # one value needs no brackets
    assert (config.cluster.kind, config.cluster.n_workers, config.cluster.threads_per_worker) == ("local", None, 1)


def test_override_replaces_one_key(full: Path):
    config = load_config(
        full, ["fit.k=[10,256]", "input.path=a=b", "evaluate=null", "input.holdout=other", "cluster.n_workers=3"]
    )

    assert config.fit is not None
    assert config.fit.k == [10, 256]
    assert config.input.path == ["a=b"]
    assert config.input.holdout == "other"
    assert config.evaluate is None
    assert config.cluster.n_workers == 3
    assert config.ingest == load_config(full).ingest


def test_last_override_wins(full: Path):
    assert load_config(full, ["seed=1", "seed=2"]).seed == 2


def test_cluster_from_address(full: Path):
    cluster = load_config(full, ["cluster.n_workers=3"], cluster="tcp://127.0.0.1:8786").cluster

    assert (cluster.kind, cluster.address, cluster.n_workers) == ("address", "tcp://127.0.0.1:8786", None)


def test_tls_address_keeps_certificates(full: Path):
    tls = "cluster.tls={ca: ca.pem, cert: me.pem}"

    encrypted = load_config(full, [tls], cluster="tls://127.0.0.1:8786").cluster
    plain = load_config(full, [tls], cluster="tcp://127.0.0.1:8786").cluster

    assert encrypted.tls == Tls(ca="ca.pem", cert="me.pem")
    assert plain.tls is None


@pytest.mark.parametrize(
    ("written", "expected"), [("02:00:00", "02:00:00"), ("10:30:00", "10:30:00"), ("1-12:00:00", "1-12:00:00")]
)
def test_unquoted_walltime(full: Path, written: str, expected: str):
    keys = f"{{kind: slurm, host: lo, n_workers: 1, memory_limit: 1GiB, walltime: {written}}}"

    assert load_config(full, [f"cluster={keys}"]).cluster.walltime == expected


def test_cluster_from_file(full: Path, tmp_path: Path):
    file = tmp_path / "cluster.yaml"
    file.write_text("{kind: local, n_workers: 3, memory_limit: 1GiB}")

    cluster = load_config(full, cluster=str(file)).cluster

    assert (cluster.kind, cluster.n_workers, cluster.memory_limit) == ("local", 3, "1GiB")


def test_config_round_trip(full: Path):
    config = load_config(full)

    assert Config.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("fits.k=3", ["unknown key fits", "allowed keys: name, output, seed, input, ingest, features, fit"]),
        ("fit.clusters=3", ["unknown key fit.clusters", "allowed keys: k, algorithm, init"]),
        ("evaluate.k=3", ["unknown key evaluate.k", "allowed keys: none"]),
        ("fit.k=ten", ["fit.k='ten'", "integer"]),
        ("fit.k=true", ["fit.k=True", "true and false are not allowed here"]),
        ("fit.k=[3, true]", ["fit.k=[3, True]", "true and false are not allowed here"]),
        ("fit.tol=yes", ["fit.tol=True", "true and false are not allowed here"]),
        ("seed=0x" + "f" * 5000, ["seed=a very large number"]),
        ("seed=2001-99-99", ["the value is not valid YAML"]),
        ("fit.k=!!timestamp x", ["the value is not valid YAML"]),
        ("fit.k=" + "[" * 3000, ["the value is not valid YAML"]),
        ("fit.k=[&a [1,1], &b [*a,*a], [*b, *b]]", ["fit.k", "integer"]),
        ('name="a\\nb"', [r"name='a\nb'"]),
        ('output="a\\0b"', ["NUL"]),
        ("ingest.resize=squeeze", ["ingest.resize='squeeze'", "'stretch', 'crop' or 'pad'"]),
        ("ingest.background=red", ["ingest.background='red'", 'white, black or "#rrggbb"']),
        ("ingest.background=#ff0000", ["ingest.background=None", 'white, black or "#rrggbb"']),
        ("fit.k=[10, 2.5]", ["fit.k=2.5", "integer"]),
        ("fit.k=[0]", ["fit.k=0", "greater than or equal to 1"]),
        ("fit.k=[]", ["fit.k=[]", "too few values"]),
        ("fit.k=[3, 5, 3]", ["fit.k=[3, 5, 3]", "duplicate values are not allowed: 3"]),
        ("fit.algorithm=dbscan", ["fit.algorithm='dbscan'", "'kmeans' or 'minibatch'"]),
        ("fit.init=zeros", ["fit.init='zeros'", "'k-means||', 'k-means++' or 'random'"]),
        ("fit.tol=.inf", ["fit.tol=inf", "finite"]),
        ("fit=3", ["fit=3", "must be a section with keys: k, algorithm"]),
        ("fit={}", ["key fit.k is missing"]),
        ("fit={k: 3, engine: dask-ml, algorithm: minibatch}", ["fit", "engine dask-ml supports only algorithm kmeans"]),
        ("quantize.k=[2, 65537]", ["quantize.k=65537", "less than or equal to 65536"]),
        ("quantize.k=0", ["quantize.k=0", "greater than or equal to 1"]),
        ("quantize.k=null", ["quantize", "give k, the number of colours"]),
        ("quantize.sample=0", ["quantize.sample=0", "greater than 0"]),
        ("ingest.size=[8]", ["ingest.size=[8]", "too few values"]),
        ("ingest.size=[8, 8, 3]", ["ingest.size=[8, 8, 3]", "too many values, at most 2 allowed"]),
        ("ingest.size=8", ["ingest.size=8", "must be a list"]),
        ("ingest.size=[8, 5000]", ["ingest.size=5000", "4096"]),
        ("ingest.mode=CMYK", ["ingest.mode='CMYK'", "'L' or 'RGB'"]),
        ("ingest=null", ["fit reads the collection", "add the section ingest"]),
        ("fit=null", ["evaluate reads the models", "add the section fit"]),
        ("input.holdout=2", ["input.holdout=2", "a folder or another source, or a fraction"]),
        ("input.holdout=true", ["input.holdout=True", "true and false are not allowed here"]),
        ("input.builtin=digits", ["input", "either path (a folder or another source) or builtin (digits or photos)"]),
        ("input.path=null", ["input", "either path (a folder or another source) or builtin (digits or photos)"]),
        ("input.max_failed=1.5", ["input.max_failed=1.5", "less than or equal to 1"]),
        (
            "input.labels=csv",
            ["input.labels='csv'", "folder, none, pattern:REGEX, column:NAME, json:KEY or text:ENDING"],
        ),
        ("input.labels=pattern:(", ["input.labels='pattern:('", "invalid regular expression"]),
        ("input.holdout=column:split", ["input.holdout='column:split'", "for example column:split=test"]),
        ("input.labels={text: cls}", ["input.labels={'text': 'cls'}: input should be a valid string"]),
        ("input.path=''", ["input.path=''", "must not be empty"]),
        ("input.classes=[a, b, a]", ["input.classes=['a', 'b', 'a']", "duplicate values are not allowed: a"]),
        ("input.table=labels.csv", ["table is only used by labels=column:NAME"]),
        ("name=a/b", ["name='a/b'", "match"]),
        ("name=..", ["name='..'", "match"]),
        ("name=2024", ["name=2024", "string"]),
        ("seed=-1", ["seed=-1", "greater than or equal to 0"]),
        ("seed=4294967296", ["seed=4294967296", "less than 4294967296"]),
        ("cluster.memory_limit=lots", ["cluster.memory_limit='lots'", "auto or a size such as 2GiB, at least 256MiB"]),
        ("cluster.memory_limit=200MB", ["cluster.memory_limit='200MB'", "at least 256MiB"]),
        ("cluster.memory_limit=4", ["cluster.memory_limit=4", "auto or a size such as 2GiB"]),
        (
            "cluster={kind: threads, memory_limit: 4GiB}",
            ["key memory_limit does not apply to kind threads; allowed keys: n_workers, threads_per_worker"],
        ),
        ("cluster.n_workers=0", ["cluster.n_workers=0", "greater than or equal to 1"]),
        ("cluster.kind=cloud", ["cluster.kind='cloud'", "'local', 'threads', 'address', 'slurm'"]),
        ("cluster.kind=address", ["cluster", "address, for example tcp://127.0.0.1:8786"]),
        (
            "cluster={kind: threads, hosts: [a, b]}",
            ["cluster: key hosts does not apply to kind threads; allowed keys: n_workers,"],
        ),
        (
            "cluster={kind: address, address: 'tcp://a:1', n_workers: 2}",
            ["key n_workers does not apply to kind address"],
        ),
        ("cluster={kind: slurm, n_workers: 2}", ["kind slurm requires the key host, where the scheduler listens"]),
        (
            "cluster={kind: slurm, host: ib0, memory_limit: 1GiB}",
            ["requires n_workers, or adaptive=[minimum, maximum]"],
        ),
        ("cluster={kind: pbs, host: ib0, n_workers: 2}", ["kind pbs requires memory_limit, the limit per worker"]),
        ("cluster={kind: slurm-runner}", ["kind slurm-runner requires the key host"]),
        ("cluster={kind: ssh, hosts: [a, b]}", ["kind ssh requires the key n_workers, for example hosts=[head,"]),
        ("cluster={kind: kubernetes, n_workers: 2}", ["kind kubernetes requires the key image"]),
        ("cluster.adaptive=[3,2]", ["adaptive=[3, 2] must be [minimum, maximum] number of workers"]),
        ("cluster={adaptive: [1, 2], n_workers: 2}", ["instead of n_workers"]),
        ("cluster.adaptive=[0,2]", ["cluster.adaptive=0: input should be greater than or equal to 1"]),
        ("cluster.queue='a b'", ["cluster.queue='a b'"]),
        ("cluster.walltime=soon", ["cluster.walltime='soon'"]),
        (
            "cluster={kind: address, address: 'tcp://a:1', tls: {ca: a, cert: b}}",
            ["tls requires an address that starts"],
        ),
        ("cluster.tls.ca=a", ["key cluster.tls.cert is missing"]),
        (
            "cluster.tls={ca: a, cert: b, password: c}",
            ["unknown key cluster.tls.password; allowed keys: ca,"],
        ),
        ("fit.k", ["'fit.k' is not KEY=VALUE", "fit.k=[10,256]"]),
        ("=3", ["'=3' is not KEY=VALUE"]),
        ("fit..k=3", ["'fit..k=3' is not KEY=VALUE"]),
        ("fit.k=[1", ["'fit.k=[1'", "not valid YAML"]),
        ("name.x=1", ["'name.x=1'", "name is a value"]),
    ],
)
def test_invalid_value_gives_one_line_error(full: Path, override: str, parts: list[str]):
    message = error_of(full, override)

    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("override", "new"),
    [
        ("ingest.fit=resize", "ingest.resize, and its value resize is now stretch"),
        ("cluster.workers=2", "cluster.n_workers"),
        ("cluster.threads=1", "cluster.threads_per_worker"),
        ("cluster.memory=2GiB", "cluster.memory_limit"),
    ],
)
def test_renamed_key_is_refused_with_its_new_name(full: Path, override: str, new: str):
    assert error_of(full, override) == f"{full}: key {override.partition('=')[0]} is now called {new}"


def test_unquoted_glob_pattern(full: Path):
    source = load_config(full, ["input.path=*.png", "input.include=*a*", "input.exclude=[old/, b]"]).input

    assert (source.path, source.include, source.exclude) == (["*.png"], ["*a*"], ["old/", "b"])


def test_config_without_stages_raises(tmp_path: Path):
    path = tmp_path / "empty.yaml"
    path.write_text("{name: x, input: {path: photos}, report: {}}")

    assert "nothing to do: add the section ingest or quantize" in error_of(path)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("fit: [", "not valid YAML"),
        ("a: 1\n\tb: 2", "not valid YAML"),
        ("a: !!python/object/apply:os.getcwd []", "not valid YAML"),
        ("", "a config must be a mapping of keys"),
        ("[1, 2]", "contains a list; a config must be a mapping of keys"),
        ("{}", "key name is missing"),
        ("{name: x}", "key input is missing"),
    ],
)
def test_file_without_config_raises(tmp_path: Path, text: str, part: str):
    path = tmp_path / "bad.yaml"
    path.write_text(text)

    message = error_of(path)

    assert part in message
    assert str(path) in message


def test_binary_file_raises(tmp_path: Path):
    path = tmp_path / "bad.yaml"
    path.write_bytes(b"\xff\xfe\x00")

    assert "not valid YAML" in error_of(path)


def test_unreadable_file_raises(full: Path, tmp_path: Path):
    missing = tmp_path / "missing.yaml"

    assert f"cannot read config {missing}: No such file" in error_of(missing)
    assert f"cannot read config {tmp_path}: Is a directory" in error_of(tmp_path)
    assert f"cannot read config {missing}" in error_of(full, cluster=str(missing))


def test_unknown_key_in_cluster_file_raises(full: Path, tmp_path: Path):
    file = tmp_path / "cluster.yaml"
    file.write_text("{kind: local, nodes: 3}")

    assert "unknown key cluster.nodes; allowed keys: kind, n_workers" in error_of(full, cluster=str(file))


def test_check_sources_reports_missing_folders(full: Path, tmp_path: Path):
    (tmp_path / "images").mkdir()

    def check(*overrides: str) -> None:
        check_sources(load_config(full, overrides).input)

    check(f"input.path={tmp_path / 'images'}")
    check("input={builtin: digits, holdout: 0.2}")
    with pytest.raises(UserError, match=r"input\.path=photos: no such file or folder .* give an existing one"):
        check()
    check("input.path=[s3://bucket/images, photos/*.tar]")
    with pytest.raises(UserError, match=r"input\.holdout=.*elsewhere: no such file or folder"):
        check(f"input.path={tmp_path / 'images'}", f"input.holdout={tmp_path / 'elsewhere'}")


def test_auto_candidates_of_short_and_long_range(full: Path):
    short = load_config(full, ["fit.k=auto", "fit.k_range=[3,6]"]).fit
    long = load_config(full, ["fit.k=auto", "fit.k_range=[2,1000]"]).fit

    assert short.ks == [3, 4, 5, 6]
    assert (long.ks[0], long.ks[-1]) == (2, 1000)
    assert 12 <= len(long.ks) <= 16
    assert load_config(full, ["fit.k=[7,3]"]).fit.ks == [7, 3]


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (["fit.k=auto", "fit.k_range=[5,5]"], "the minimum must be less than the maximum"),
        (["fit.k=auto", "fit.k_range=[5]"], "fit.k_range=[5]: too few values"),
        (["fit.k=auto", "fit.engine=dask-ml", "fit.algorithm=kmeans"], "give k as numbers"),
    ],
)
def test_invalid_k_range_raises(full: Path, overrides: list[str], part: str):
    with pytest.raises(UserError, match=re.escape(part)):
        load_config(full, overrides)
