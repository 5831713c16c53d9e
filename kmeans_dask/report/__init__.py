"""The report: the one-file page, its pictures and its plots."""
