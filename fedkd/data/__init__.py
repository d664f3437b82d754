"""Images, and which node has which of them."""
