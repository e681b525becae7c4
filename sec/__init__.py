"""The SEC node and all that belongs to it. What users import is `sec_client`."""

__version__ = "0.1.0"
