"""Turn paths into one manifest, and each manifest row into pixels or an error."""
