"""The GPU memory that a training will need, from its settings alone.

Weights are counted on torch's meta device, which allocates nothing. Activations are arithmetic: the
tensors that autograd saves for the backward pass, one by one.
"""
