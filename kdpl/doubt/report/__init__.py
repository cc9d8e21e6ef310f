"""The sections of the report on doubt; nothing but the report loads them."""
