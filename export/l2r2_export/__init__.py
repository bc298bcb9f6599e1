"""Trained models → ONNX, with proof that the answers stayed the same."""
