"""How pages look: readable without a network, and at the width of a phone."""

from __future__ import annotations

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1c2430 }
h1 { font-size: 1.4rem } h2 { font-size: 1.1rem; margin-top: 2rem }
table { border-collapse: collapse; display: block; overflow-x: auto } td, th { padding: .25rem .8rem; text-align: left }
tr { border-bottom: 1px solid #e3e7ee } td.n { text-align: right; font-variant-numeric: tabular-nums }
img { max-width: 100% } pre { background: #f5f7fa; padding: 1rem; overflow-x: auto; font-size: .85rem }
"""
