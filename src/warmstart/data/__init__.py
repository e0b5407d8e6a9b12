"""From a path to batches: sources, splits, facts, decoding, augmentation, order and delivery.

Images are numpy uint8 in RGB order, height x width x channels, until the engine makes them tensors.
"""
