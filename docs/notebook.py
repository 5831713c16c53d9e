# %% [markdown]
# # A collection in a notebook
#
# Open this file as a notebook in Jupyter (with Jupytext) or in an editor that knows cells, in the folder where
# `make run`, or `kmeans-dask run configs/digits.yaml`, wrote `runs/digits`.

# %%
import numpy as np

from kmeans_dask import KMeans, build_collection, centroid_sheet, majority_label_map, open_collection, score_clusters

collection = open_collection("runs/digits/collection.zarr")
collection

# %% [markdown]
# The images are a Dask array. Nothing is read before it is needed; with a `distributed.Client` the workers read it.

# %%
train, train_rows = collection.rows("train")  # one flattened image per row, and its row in the collection
held_out, held_out_rows = collection.rows("holdout")
model = KMeans(n_clusters=36, random_state=0).fit(train)
model.inertia_, model.n_iter_

# %% [markdown]
# Every cluster gets the label of most of its items. Held-out items show how well these labels predict.

# %%
clusters = model.labels_.compute()
label_map = majority_label_map(collection.labels[train_rows], clusters, model.n_clusters)
accuracy = score_clusters(collection.labels[held_out_rows], model.predict(held_out), label_map)["accuracy"]
accuracy

# %% [markdown]
# The centres are images too. A Matplotlib figure at the end of a cell is drawn below it.

# %%
centres = model.cluster_centers_.reshape(-1, *collection.images.shape[1:])
sizes = np.bincount(clusters, minlength=model.n_clusters)
sheet = centroid_sheet(centres, [collection.class_names[label] for label in label_map], sizes.tolist())
sheet

# %% [markdown]
# The items farthest from their centre are worth a look.

# %%
distances = model.transform(train).min(axis=1).compute()
farthest = np.argsort(-distances)[:5]
collection.items["path"].take(train_rows[farthest]).to_pylist()

# %% [markdown]
# New images: bring them to the same size and mode, and predict. Here, the folder that the run was made from.

# %%
new = build_collection("runs/digits/input/digits", "new.zarr", size=(8, 8), mode="L")
rows, index = new.rows("train")
predicted = [new.class_names[label] for label in label_map[model.predict(rows).compute()]]
list(zip(new.items["path"].take(index).to_pylist(), predicted, strict=True))[:5]
