"""From names to crops: finding documents, rasterizing pages, deciding whether to split them."""
