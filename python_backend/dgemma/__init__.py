"""DiffusionGemma behind Triton: the gRPC client, the command line and the serving runtime.

Importing this package loads nothing else: `dgemma.client` needs only the light install, the
serving modules need `pip install 'dgemma[server]'`.
"""

__version__ = "0.1.0"
