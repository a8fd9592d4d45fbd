"""Other libraries: pretrained towers, the hub and its model cards, open_clip."""
