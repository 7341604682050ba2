"""``python -m ops_dcnv3.benchmark``: time what can run here, after checking its results."""
