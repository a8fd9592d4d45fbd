"""What grows: processes, large batches, averaged runs, caches, and indexes of many images."""
