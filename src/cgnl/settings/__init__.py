"""The settings of a run and of its blocks: frozen dataclasses, checked and read from YAML; no PyTorch."""
