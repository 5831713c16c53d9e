"""Cluster the handwritten digits of MNIST, label the clusters by majority vote, and score them.

python jobs/mnist.py mnist_png/train mnist_png/test [--cluster tcp://10.0.0.1:8786]
"""

import argparse
from pathlib import Path

import numpy as np

from kmeans_dask import (
    KMeans,
    MiniBatchKMeans,
    build_collection,
    centroid_sheet,
    connect,
    fit_together,
    majority_label_map,
    score_clusters,
)


def main() -> None:
    """Build the collection, fit all models, print a table of scores, and draw the centres of each model."""
    parser = argparse.ArgumentParser(description="Cluster folders of labelled images and score the clusters.")
    parser.add_argument("train", help="folder of images to fit, with one folder per label")
    parser.add_argument("test", help="folder of images that are scored but not fitted")
    parser.add_argument("--dest", type=Path, default=Path("runs/mnist"), help="folder for all results")
    parser.add_argument("-k", type=int, nargs="+", default=[10, 16, 36, 64, 144, 256], help="numbers of clusters")
    parser.add_argument("--cluster", help="scheduler address, or YAML file; default: worker processes on this machine")
    args = parser.parse_args()

    with connect(args.cluster):
        digits = build_collection(args.train, args.dest / "digits.zarr", size=(28, 28), mode="L", holdout=args.test)
        print(digits)
        X, rows = digits.rows("train")  # Dask array with one flattened image per row
        X_test, rows_test = digits.rows("holdout")
        y, y_test = digits.labels[rows], digits.labels[rows_test]

        X = X.persist()  # in the memory of the workers: 47 MB for MNIST
        models = [KMeans(k, random_state=0) for k in args.k]
        fit_together(models, X)  # one pass over the data serves every K
        models += [MiniBatchKMeans(k, random_state=0).fit(X) for k in args.k]

        print("model               K     inertia  homogeneity  accuracy  held-out")
        for model in models:
            name = type(model).__name__
            clusters = model.labels_.compute()
            label_map = majority_label_map(y, clusters, model.n_clusters)
            train = score_clusters(y, clusters, label_map)
            test = score_clusters(y_test, model.predict(X_test), label_map)
            print(
                f"{name:15} {model.n_clusters:5} {model.inertia_:11.4g} {train['homogeneity']:12.4f}"
                f" {train['accuracy']:9.4f} {test['accuracy']:9.4f}"
            )
            centres = model.cluster_centers_.reshape(-1, *digits.images.shape[1:])
            titles = [[*digits.class_names, "none"][label] for label in label_map]  # -1: no labelled image
            sheet = centroid_sheet(centres, titles, np.bincount(clusters, minlength=model.n_clusters).tolist())
            sheet.savefig(args.dest / f"centres-{name}-k{model.n_clusters}.png")


if __name__ == "__main__":  # worker processes import this file
    main()
