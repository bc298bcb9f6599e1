"""Generated from `proto/l2r2/v1`; see `l2r2_serving.generate`."""
