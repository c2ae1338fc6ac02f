"""The methods of `Tensor`, in groups."""
