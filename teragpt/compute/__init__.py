"""What a device computes for the model: fused operations, their kernels, collectives that gradients pass through."""
