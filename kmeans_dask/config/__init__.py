"""Every key of a config: a YAML file becomes the checked config."""
