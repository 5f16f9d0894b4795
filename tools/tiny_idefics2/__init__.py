"""Makes the tiny Idefics2 of this folder: pages with known answers, a model, and its training from nothing."""
