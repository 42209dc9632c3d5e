"""Every image view that was ever encoded, found again by content.

parts      an append-only Parquet table in storage, with a manifest
index      (URI, size, version) -> SHA-256 of the bytes, and which bytes are no usable image
bank       (SHA-256, view) -> feature
selection  which images a run needs, under which views
extract    Ray Data fills the bank's gaps
"""
