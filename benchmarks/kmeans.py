"""K-Means against other libraries and against the hardware.

``python -m benchmarks.kmeans RUN [SECTION ...]``, where RUN is the run folder of ``configs/mnist.yaml``.
"""

from __future__ import annotations

from benchmarks.common import Mnist, accuracy, inertia, machine, median, medians_in_turn, seconds, table, workers  # isort: skip

import resource
import shutil
import statistics
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import sklearn.cluster
from dask_ml.cluster import KMeans as StockKMeans
from threadpoolctl import threadpool_limits

from kmeans_dask import KMeans, MiniBatchKMeans, fit_together
from kmeans_dask.kmeans.kernels import Stack, slice_rows, sum_by_cluster
from kmeans_dask.kmeans.lloyd import add_sums
from kmeans_dask.reduction import broadcast, map_chunks, tree_reduce
from kmeans_dask.storage.zarr_groups import Layout, create_collection, write_block

K = 256
SWEEP = (10, 16, 36, 64, 144, 256)
Rows = Iterator[tuple[Any, ...]]


def lloyd_pass(X: da.Array, centres: np.ndarray) -> Callable[[], Any]:
    """Return a function that makes one Lloyd pass as the estimator does."""
    stack = Stack.of([centres])
    return lambda: tree_reduce(map_chunks(sum_by_cluster, X, None, stack=broadcast(stack)), add_sums).compute()


def in_threads(n: int, work: Callable[[np.ndarray], Any], X: np.ndarray) -> Callable[[], None]:
    """Return a function that splits the rows evenly over n threads and runs ``work`` in each."""
    parts = np.array_split(X, n)

    def run() -> None:
        threads = [threading.Thread(target=work, args=(part,)) for part in parts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    return run


def passes(data: Mnist) -> Rows:
    """Item 1: one Lloyd pass against bare sgemm on cache-sized slices, one thread per core."""
    centres = data.train[:: len(data.train) // K][:K].astype(np.float32)
    for name, X in (("60,000", data.train), ("600,000", shifted(data.train, 10))):

        def sgemm(rows: np.ndarray) -> None:
            step = slice_rows(784)
            floats, out = rows[:step].astype(np.float32), np.empty((step, K), np.float32)
            for start in range(0, len(rows), step):
                n = min(step, len(rows) - start)
                np.matmul(floats[:n], centres.T, out=out[:n])

        def kernel(rows: np.ndarray) -> None:
            sum_by_cluster(rows, stack=Stack.of([centres]))

        with threadpool_limits(1), workers():
            persisted = da.from_array(X, chunks=(-(-len(X) // 8 // 1024) * 1024, -1)).persist()
            named: dict[str, Callable[[], Any]] = {
                "bare sgemm": in_threads(2, sgemm, X),
                "kernel, two threads": in_threads(2, kernel, X),
                "two workers": lloyd_pass(persisted, centres),
                "two workers, empty tasks": tree_reduce(map_chunks(_nothing, persisted), _first).compute,
            }
            walls = medians_in_turn(list(named.values()))
        for what, wall in zip(named, walls, strict=True):
            yield name, what, f"{wall:.3f}", f"{wall / walls[0]:.2f}"


def _nothing(block: np.ndarray) -> np.ndarray:
    return np.zeros((K, 784), np.int32)


def _first(parts: list[np.ndarray]) -> np.ndarray:
    return parts[0]


def shifted(X: np.ndarray, copies: int) -> np.ndarray:
    """Concatenate copies of MNIST, each shifted by up to two pixels."""
    moves = [(0, 0)] + [(dy, dx) for dy in range(-2, 3) for dx in range(-2, 3) if dy or dx]
    images = X.reshape(-1, 28, 28)
    return np.concatenate([np.roll(images, moves[i % 25], axis=(1, 2)).reshape(len(X), -1) for i in range(copies)])


Fits = list[tuple[float, Any, int]]
"""Seconds, centres and iterations for each seed."""


def peers(data: Mnist, seeds: int = 3) -> Rows:
    """Item 2: the same data, two cores, K = 256; medians over seeds, but means of inertia and accuracy."""
    floats = data.train.astype(np.float32)
    local = [_local(floats, seed) for seed in range(seeds)]
    base = statistics.median(fit[0] for fit in local)
    yield _row(data, "scikit-learn KMeans, n_init=1", local, base)
    faiss = [_faiss(floats, seed) for seed in range(seeds)]
    yield _row(data, "faiss, 25 iterations, no subsampling", faiss, base)
    with workers():
        _warm(data)
        yield _row(data, "kmeans_dask", [_ours(data, seed) for seed in range(seeds)], base)
        for name, target in (
            ("faiss's inertia", statistics.mean(inertia(data.train, fit[1]) for fit in faiss)),
            ("1.002x scikit-learn's", 1.002 * statistics.mean(inertia(data.train, fit[1]) for fit in local)),
        ):
            short = [_ours(data, seed, max_iter=_passes_to(data, seed, target)) for seed in range(seeds)]
            yield _row(data, f"kmeans_dask, stopped at {name}", short, base)
        plain = [_ours(data, seed, algorithm="lloyd") for seed in range(seeds)]
        yield _row(data, "kmeans_dask, plain Lloyd", plain, base)


def stock(data: Mnist) -> Rows:
    """Item 2: kmeans_dask and stock dask-ml on the same cluster, K = 256; one seed for dask-ml."""
    with workers(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _warm(data)
        ours = [_ours(data, seed) for seed in range(3)]
        base = statistics.median(fit[0] for fit in ours)
        yield _row(data, "kmeans_dask, three seeds", ours, base)
        goal = 1.002 * inertia(data.train, _local(data.train.astype(np.float32), 0)[1])
        short = [_ours(data, seed, max_iter=_passes_to(data, seed, goal)) for seed in range(3)]
        yield _row(data, "kmeans_dask, stopped at 1.002x scikit-learn's inertia", short, base)
        for name, arguments in (
            ("dask-ml, l = 2K, five rounds", {"oversampling_factor": 2 * K, "init_max_iter": 5}),
            ("dask-ml, l = 2, its default", {}),
        ):
            X = data.X.persist().astype(np.float32).persist()
            wall, fit = seconds(lambda X=X, a=arguments: StockKMeans(K, random_state=0, **a).fit(X))
            yield _row(data, name, [(wall, fit.cluster_centers_, fit.n_iter_)], base)


def _row(data: Mnist, name: str, fits: Fits, base: float) -> tuple[Any, ...]:
    """Format the table row of one engine; the last column is its speed relative to `base` seconds."""
    wall = statistics.median(fit[0] for fit in fits)
    value = statistics.mean(inertia(data.train, fit[1]) for fit in fits)
    right = statistics.mean(accuracy(data.train, data.labels, data.test, data.truth, fit[1]) for fit in fits)
    iterations = statistics.median(fit[2] for fit in fits)
    return name, f"{wall:.2f}", iterations, f"{value:,.0f}", f"{right:.4f}", f"{base / wall:.3g}"


def _local(floats: np.ndarray, seed: int) -> tuple[float, Any, int]:
    wall, fit = seconds(lambda: sklearn.cluster.KMeans(K, n_init=1, random_state=seed).fit(floats))
    return wall, fit.cluster_centers_, fit.n_iter_


def _ours(data: Mnist, seed: int, **arguments: Any) -> tuple[float, Any, int]:
    wall, fit = seconds(lambda: KMeans(K, random_state=seed, **arguments).fit(data.X.persist()))
    return wall, fit.cluster_centers_, fit.n_iter_


def _passes_to(data: Mnist, seed: int, target: float) -> int:
    """Return the number of passes after which the inertia on pixels / 255 is at most `target`."""
    history = KMeans(K, random_state=seed).fit(data.X.persist()).inertia_history_ / 255**2
    return int(np.argmax(history <= target)) if (history <= target).any() else len(history)


def _warm(data: Mnist) -> None:
    """Import and compile on every worker before the first measured fit, as for every other engine."""
    KMeans(8, max_iter=2, random_state=0).fit(data.X[:16384].persist())
    MiniBatchKMeans(8, random_state=0).fit(data.X[:16384].persist())


def _faiss(floats: np.ndarray, seed: int) -> tuple[float, Any, int]:
    import faiss

    faiss.omp_set_num_threads(2)
    model = faiss.Kmeans(784, K, niter=25, seed=seed + 1, max_points_per_centroid=10**9)
    wall, _ = seconds(lambda: model.train(floats))
    return wall, model.centroids, 25


def spark(data: Mnist) -> Rows:
    """Item 2: Spark MLlib, local[2], cached, k-means||."""
    from pyspark.ml.clustering import KMeans as SparkKMeans
    from pyspark.ml.functions import array_to_vector
    from pyspark.sql import SparkSession

    session = (
        SparkSession.builder.master("local[2]").config("spark.driver.memory", "10g")
        .config("spark.driver.bindAddress", "127.0.0.1").config("spark.driver.host", "127.0.0.1")
        .config("spark.ui.enabled", "false").getOrCreate()
    )  # fmt: skip
    session.sparkContext.setLogLevel("ERROR")
    with tempfile.TemporaryDirectory() as folder:
        import pyarrow as pa
        import pyarrow.parquet as pq

        values = pa.FixedSizeListArray.from_arrays(pa.array(data.train.astype(np.float64).ravel()), 784)
        pq.write_table(
            pa.table({"x": values.cast(pa.list_(pa.float64()))}), f"{folder}/rows.parquet", row_group_size=7500
        )
        frame = session.read.parquet(folder).repartition(2).select(array_to_vector("x").alias("features")).cache()
        frame.count()
        wall, model = seconds(lambda: SparkKMeans(k=K, seed=0, maxIter=20).fit(frame))
        centres = np.array(model.clusterCenters())
    session.stop()
    with workers():
        _warm(data)
        target = inertia(data.train, centres)
        fits = {
            "kmeans_dask, stopped at Spark's inertia": _ours(data, 0, max_iter=_passes_to(data, 0, target)),
            "kmeans_dask": _ours(data, 0),
        }
    yield "Spark MLlib, 20 iterations", f"{wall:.1f}", f"{target:,.0f}", "1"
    for name, (ours, found, _) in fits.items():
        yield name, f"{ours:.2f}", f"{inertia(data.train, found):,.0f}", f"{wall / ours:.1f}"


def minibatch(data: Mnist, seeds: int = 5) -> Rows:
    """Item 3: mini-batch K-Means, both with default settings."""
    floats = data.train.astype(np.float32)
    base = None
    with workers():
        _warm(data)
        for name, fit in (
            (
                "scikit-learn MiniBatchKMeans",
                lambda s: sklearn.cluster.MiniBatchKMeans(K, n_init=1, random_state=s).fit(floats),
            ),
            ("kmeans_dask MiniBatchKMeans", lambda s: MiniBatchKMeans(K, random_state=s).fit(data.X.persist())),
        ):
            fits = [seconds(lambda s=s, fit=fit: fit(s)) for s in range(seeds)]
            wall = statistics.median(w for w, _ in fits)
            values = [inertia(data.train, f.cluster_centers_) for _, f in fits]
            right = [accuracy(data.train, data.labels, data.test, data.truth, f.cluster_centers_) for _, f in fits]
            base = base or wall
            yield (
                name,
                f"{wall:.2f}",
                f"{statistics.mean(values):,.0f}",
                f"{statistics.mean(right):.4f}",
                f"{wall / base:.2f}",
            )


def sweep(data: Mnist, seeds: int = 3) -> Rows:
    """Item 4: six K in shared passes; scikit-learn fits them one after the other."""
    floats = data.train.astype(np.float32)
    with workers():
        _warm(data)
        alone = statistics.median(
            seconds(lambda s=s: KMeans(K, random_state=s).fit(data.X.persist()))[0] for s in range(seeds)
        )
        yield "kmeans_dask, K = 256", f"{alone:.2f}", "1.00"
        six = statistics.median(
            seconds(lambda s=s: fit_together([KMeans(k, random_state=s) for k in SWEEP], data.X.persist()))[0]
            for s in range(seeds)
        )
        yield "kmeans_dask, six K", f"{six:.2f}", f"{six / alone:.2f}"
    wall = sum(seconds(lambda k=k: sklearn.cluster.KMeans(k, n_init=1, random_state=0).fit(floats))[0] for k in SWEEP)
    yield "scikit-learn KMeans, six K", f"{wall:.2f}", f"{wall / alone:.2f}"


def init(data: Mnist, rows: int = 10_000, k: int = 64, seeds: int = 10) -> Rows:
    """Item 5: initial and final inertia over ten seeds, on 10,000 rows (a stock dask-ml fit of all takes minutes)."""
    from dask_ml.cluster.k_means import k_init

    from kmeans_dask.kmeans.estimator import init_specs
    from kmeans_dask.kmeans.lloyd import prepare
    from kmeans_dask.kmeans.seeding import choose_centres

    part = data.train[np.random.default_rng(0).choice(len(data.train), rows, replace=False)]
    floats, X = part.astype(np.float32), da.from_array(part, chunks=(2048, -1))
    quiet = warnings.catch_warnings()
    with quiet, dask.config.set(scheduler="threads"):
        warnings.simplefilter("ignore")

        def ours(seed: int) -> tuple[float, float]:
            fit = KMeans(k, random_state=seed).fit(X)
            return float(fit.inertia_history_[0]) / 255**2, inertia(part, fit.cluster_centers_)

        def plain(seed: int) -> tuple[float, float]:
            estimator = KMeans(k, algorithm="lloyd", random_state=seed)
            init = choose_centres(prepare(X, None)[0], init_specs(estimator, X))[0]
            return inertia(part, init), inertia(part, estimator.fit(X).cluster_centers_)

        def local(seed: int) -> tuple[float, float]:
            init, _ = sklearn.cluster.kmeans_plusplus(floats, k, random_state=seed)
            fit = sklearn.cluster.KMeans(k, init=init, n_init=1).fit(floats)
            return inertia(part, init), inertia(part, fit.cluster_centers_)

        def stock(seed: int, **arguments: Any) -> tuple[float, float]:
            x = X.astype(np.float32).persist()
            state = da.random.RandomState(seed)
            init = k_init(x, k, random_state=state, oversampling_factor=arguments["l"], max_iter=arguments["rounds"])
            return inertia(part, init), inertia(part, StockKMeans(k, init=init).fit(x).cluster_centers_)

        engines: dict[str, Callable[[int], tuple[float, float]]] = {
            "kmeans_dask, init on a sample": ours,
            'kmeans_dask, `algorithm="lloyd"`': plain,
            "scikit-learn k-means++": local,
            "dask-ml, l = 2": lambda seed: stock(seed, l=2, rounds=None),
            "dask-ml, l = 2K, five rounds": lambda seed: stock(seed, l=2 * k, rounds=5),
        }
        for name, fit in engines.items():
            initial, ends = zip(*(fit(seed) for seed in range(seeds)), strict=True)
            yield name, f"{statistics.mean(initial):,.0f}", f"{statistics.mean(ends):,.0f}", f"{max(ends):,.0f}"


def chunks(data: Mnist) -> Rows:
    """Item 6: tasks and seconds per pass."""
    centres = data.train[:16].astype(np.float32)
    with workers():
        for n in (10, 100, 1000):
            X = data.chunked(-(-len(data.train) // n)).persist()
            run = lloyd_pass(X, centres)
            stack = Stack.of([centres])
            graph = tree_reduce(map_chunks(sum_by_cluster, X, None, stack=broadcast(stack)), add_sums)
            (optimized,) = dask.optimize(graph)
            blocks = set(dask.core.flatten(X.__dask_keys__()))  # persisted data, not tasks
            tasks = len(set(dict(optimized.__dask_graph__())) - blocks)
            wall = median(run, 3)
            floats = X.astype(np.float32).persist()

            def stock(iterations: int, floats: da.Array = floats) -> float:
                init = np.ascontiguousarray(centres)
                return seconds(lambda: StockKMeans(16, init=init, max_iter=iterations, tol=0).fit(floats))[0]

            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                stock_wall = (stock(3) - stock(1)) / 2
            yield n, tasks, f"{tasks / n:.2f}", f"{wall:.3f}", f"{stock_wall:.3f}", f"{stock_wall / wall:.1f}"


def scaling(data: Mnist) -> Rows:
    """Item 7: one and two workers on 600,000 rows, and the kernel alone in one and two threads."""
    centres = data.train[:: len(data.train) // K][:K].astype(np.float32)
    X = shifted(data.train, 10)
    walls: list[tuple[float, float]] = []
    for n in (1, 2):
        with workers(n), threadpool_limits(1):
            persisted = da.from_array(X, chunks=(16384, -1)).persist()
            kernel = in_threads(n, lambda rows: sum_by_cluster(rows, stack=Stack.of([centres])), X)
            one_pass, alone = medians_in_turn([lloyd_pass(persisted, centres), kernel], 5)
        walls.append((one_pass, alone))
        x, x_alone = walls[0][0] / one_pass, walls[0][1] / alone
        yield n, f"{one_pass:.3f}", f"{x:.2f}", f"{alone:.3f}", f"{x_alone:.2f}"


def memory(data: Mnist, gib: float = 8.2) -> Rows:
    """Item 8: more pixels than memory, on two workers of 600 MiB."""
    folder = Path(tempfile.mkdtemp(prefix="kmeans-dask-"))
    try:
        rows, step = int(gib * 2**30 / 784), 8192
        path = folder / "collection.zarr"
        create_collection(
            path, Layout((rows, 28, 28, 1), step), np.full(rows, -1, np.int32), {"fingerprint": "", "class_names": []}
        )
        write = dask.delayed(_write_shifted, pure=False)
        with workers():
            dask.compute(
                *[write(path, data.collection.folder, start, min(start + step, rows)) for start in range(0, rows, step)]
            )
        from kmeans_dask.collection.collection import _read_images
        from kmeans_dask.storage.zarr_groups import read_layout

        X = _read_images(path, read_layout(path), "").reshape(rows, 784)
        with workers(2, "600MiB") as client:
            wall, fit = seconds(lambda: KMeans(10, random_state=0).fit(X))
            peaks = client.run(lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
            spilled = client.run(
                lambda dask_worker: (
                    getattr(dask_worker.data, "spilled_total", None) and str(dask_worker.data.spilled_total)
                )
            )
            alive = len(client.scheduler_info()["workers"])
        for worker, peak in peaks.items():
            yield (
                worker.rpartition(":")[2],
                f"{rows:,}",
                f"{X.nbytes / 2**30:.2f}",
                f"{wall:.0f}",
                fit.n_iter_,
                f"{peak:.0f}",
                spilled[worker],
                alive,
            )
    finally:
        shutil.rmtree(folder)


def _write_shifted(path: Path, source: Path, start: int, stop: int) -> None:
    from kmeans_dask.storage.zarr_groups import read_block

    first = start % 57_344
    block = read_block(source, first, first + stop - start)
    moves = divmod(start // 57_344 % 25, 5)
    write_block(path, start, np.roll(block, (moves[0] - 2, moves[1] - 2), axis=(1, 2)))


def bitwise(data: Mnist) -> Rows:
    """Item 9: centres are bitwise equal for any number of workers and any chunks."""
    import hashlib

    def digest(X: da.Array) -> str:
        return hashlib.sha256(KMeans(64, random_state=0).fit(X).cluster_centers_.tobytes()).hexdigest()[:16]

    for n in (1, 2):
        with workers(n):
            for rows in (1024, 4096, 8192):
                yield f"{n} processes", rows, digest(data.chunked(rows).persist())
    with dask.config.set(scheduler="threads"):
        for rows in (1024, 4096, 8192):
            yield "threads", rows, digest(data.chunked(rows))


SECTIONS: dict[str, tuple[Callable[[Mnist], Rows], tuple[str, ...]]] = {
    "passes": (passes, ("rows", "what", "s/pass", "x bare sgemm")),
    "peers": (peers, ("engine", "seconds", "iterations", "inertia", "accuracy held-out", "x faster than scikit-learn")),
    "stock": (stock, ("engine", "seconds", "iterations", "inertia", "accuracy held-out", "x kmeans_dask's speed")),
    "minibatch": (minibatch, ("engine", "seconds", "inertia", "accuracy held-out", "x scikit-learn's time")),
    "sweep": (sweep, ("what", "seconds", "x K = 256 alone")),
    "init": (init, ("engine", "initial inertia", "final inertia", "worst final inertia")),
    "chunks": (chunks, ("chunks", "tasks per pass", "tasks per chunk", "s/pass", "stock dask-ml, s/pass", "x")),
    "scaling": (scaling, ("workers", "s/pass", "x one worker", "kernel alone, as many threads", "x one thread")),
    "bitwise": (bitwise, ("workers", "rows per chunk", "sha256 of the centres")),
    "memory": (memory, ("worker", "rows", "GiB", "seconds", "passes", "peak MiB", "spilled", "workers alive")),
    "spark": (spark, ("engine", "seconds", "inertia", "x")),
}  # fmt: skip


def main() -> None:
    """Run the sections named on the command line, or all of them."""
    data = Mnist(Path(sys.argv[1]))
    print(machine())
    for name in sys.argv[2:] or SECTIONS:
        function, columns = SECTIONS[name]
        assert function.__doc__ is not None
        table(f"{name}: {function.__doc__.splitlines()[0]}", columns, function(data))


if __name__ == "__main__":
    main()
