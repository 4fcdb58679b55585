"""Image-text pairs in tar shards, read by position (tar.py, shard_index.py), written (write.py), and in TSV files."""
