"""What is computed between the linear layers, in torch and as Triton kernels, and the products themselves."""
