"""Requests in, tokens out; this room knows no HTTP, and importing it brings in none of its modules."""
