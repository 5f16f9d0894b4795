"""What is computed between the matrix products, in torch and as Triton kernels, and the products themselves."""
