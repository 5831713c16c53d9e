# %% [markdown]
# # A collection in a notebook
#
# Open this file as a notebook in Jupyter (with Jupytext) or an editor that knows cells, in the folder where `make run`,
# or `kmeans-dask run configs/digits.yaml`, has written `runs/digits`.

# %%
import numpy as np
import pyarrow.parquet as pq

from kmeans_dask import KMeans, open_collection
from kmeans_dask.cli.predict import predict
from kmeans_dask.evaluation.metrics import contingency_block, label_map, scores
from kmeans_dask.report.plots import centroid_sheet

collection = open_collection("runs/digits/collection.zarr")
collection

# %% [markdown]
# The images are a Dask array. Nothing is read before it is needed; a `distributed.Client` of yours would do the work.

# %%
train, train_rows = collection.rows("train")  # one flattened image a row, and where it is in the collection
held_out, held_out_rows = collection.rows("holdout")
model = KMeans(n_clusters=36, random_state=0).fit(train)
model.inertia_, model.n_iter_

# %% [markdown]
# Every cluster gets the label that most of its items have; held-out items show how good that is.


# %%
def count(X, rows):
    clusters = model.predict(X).compute()
    return contingency_block(clusters, collection.labels[rows], model.n_clusters, len(collection.class_names))


contingency = count(train, train_rows)
mapping = label_map(contingency)
accuracy = scores(count(held_out, held_out_rows), mapping)["accuracy"]
accuracy

# %% [markdown]
# The centres are images too. A Matplotlib figure at the end of a cell is drawn below it.

# %%
centres = model.cluster_centers_.reshape(-1, *collection.images.shape[1:])
sheet = centroid_sheet(centres, [collection.class_names[label] for label in mapping], contingency.sum(axis=1).tolist())
sheet

# %% [markdown]
# The items that are farthest from their centre are worth a look.

# %%
distances = model.transform(train).min(axis=1).compute()
farthest = np.argsort(-distances)[:5]
collection.items["path"].take(train_rows[farthest]).to_pylist()

# %% [markdown]
# What `kmeans-dask predict` does: new images in the finished run, here the folder that it was made from.

# %%
table = pq.read_table(predict("runs/digits", "runs/digits/input/digits", k=36))
table.slice(0, 5).to_pylist()
