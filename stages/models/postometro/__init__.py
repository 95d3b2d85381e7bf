"""PostoMETRO and FastMETRO: vertices from a crop. docs/postometro.md says what is published."""

from stages.models.postometro.recoverers import FastMetroRecoverer, PctExtractor, PostoMetroRecoverer

__all__ = ["FastMetroRecoverer", "PctExtractor", "PostoMetroRecoverer"]
