"""The self-contained HTML page that shows what a registration did."""
