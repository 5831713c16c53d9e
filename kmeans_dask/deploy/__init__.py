"""Clients of Dask clusters, whoever starts them; submission; the watchdog. Only this room imports ``distributed``."""
