"""The backend ``triton``: the ops as GPU kernels written in Triton.

Every module holds one subject: its kernels, a function that launches them, and the op. Without a
GPU they run in Triton's interpreter (``TRITON_INTERPRET=1``) on CPU tensors, which is how the
default tests hold them to the reference.
"""
