"""Systems side by side: the paper's Table 1, remade from finished runs."""
