"""What the server keeps on disk: the folder of --data-dir."""
