"""What the library says of itself and of runs: claims, orders, tables, pages."""
