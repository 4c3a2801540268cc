"""One file per format of other programs; ``self1e.inference.export`` writes them."""
