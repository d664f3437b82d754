"""What crosses between server and nodes, and how it is checked, counted and merged."""
