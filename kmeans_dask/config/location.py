"""Where run folders may be. Imports nothing: processes that only read images import it and must start fast."""

SCHEMES = ("s3", "gs", "az", "abfs")
"""URL schemes whose fsspec file systems publish an object atomically, in one request. sftp and hdfs do not: readers can
see a half-written file. memory is visible to a single process only."""


def check_location(text: str) -> str:
    """Return the location of run folders unchanged if it is valid.

    Parameters
    ----------
    text
        Local folder, or URL in an object store.

    Returns
    -------
    str

    Raises
    ------
    ValueError
        The URL has an unsupported scheme, no bucket, or wildcard characters.
    """
    scheme, sign, rest = text.partition("://")
    if sign and (scheme not in SCHEMES or not rest.partition("/")[0] or set(rest) & set("*?[]#")):
        raise ValueError(f"must be a folder, or the URL of a bucket: {', '.join(f'{name}://' for name in SCHEMES)}")
    return text
