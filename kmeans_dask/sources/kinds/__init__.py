"""To add a kind of source, write a module here that lists its items as a `SourceListing` and reads them by position.

Name its suffix in `expand._SUFFIX_KINDS`, and dispatch to it in `listing._list_source` and `reading._open_container`.
An array format goes into `arrays.open_array` and `ranges._ARRAYS` instead.
"""
