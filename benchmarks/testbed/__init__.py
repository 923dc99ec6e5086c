"""A small Llama that begins at chosen success rates, and runs that train it in seconds by the product's own loop."""
