"""Image-text pairs: tar shards, read by position (tar.py, shard_index.py) and written (write.py), and TSV files."""
