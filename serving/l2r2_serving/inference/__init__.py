"""Generated from `proto/inference`; see `l2r2_serving.generate`."""
