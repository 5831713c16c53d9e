"""One module for each stage, with ``run(config, client) -> summary``."""
