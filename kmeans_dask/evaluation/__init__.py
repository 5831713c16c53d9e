"""Two passes over all items: metrics, label issues, outliers, duplicates, the choice of K."""
