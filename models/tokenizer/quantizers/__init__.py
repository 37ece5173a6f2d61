"""The bottlenecks between encoder and decoder, one interface (`base`), one module each, chosen by `build`.

`config` imports without torch; the other modules need it.
"""
