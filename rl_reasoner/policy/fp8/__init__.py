"""FP8: layers that compute in it while training, a GPU's products, weights in a policy's files.

May import what `policy` may.
"""
