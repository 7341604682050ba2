"""Our configs in the terms of the table of official settings (``golden/model_zoo.yaml``)."""
