"""Programs to copy from, each run by one command.

Dask, Ray, PyTorch and Hugging Face over `lightly://`:

    python -m lightlyfs.examples.dask_stats my-dataset --workers 4

Without an account these start `lightlyfs serve` over `--serve FOLDER`, or over pictures that they make.
LightlyStudio, FiftyOne, Ultralytics and Label Studio over a mount:

    python -m lightlyfs.examples.lightly_studio my-dataset
"""
