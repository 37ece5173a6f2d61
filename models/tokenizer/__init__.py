"""The visual tokenizer: images and videos to codes or latents and back, with its adversarial training parts.

`config` imports without torch; the other modules need it.
"""
