"""Programs to copy from: Dask, Ray, PyTorch and Hugging Face over `lightly://`, each run by one command.

    python -m lightlyfs.examples.dask_stats my-dataset --workers 4

Without an account they start `lightlyfs serve` over `--serve FOLDER`, or over pictures that they make.
"""
