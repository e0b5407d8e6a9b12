"""Several tasks of one run: lanes of one job."""
